"""What self-adaptation promises on the embedded model, as `transformer2 adapt` delivers it. Slow: minutes each.

Three seeds choose the few-shot rows and drive the search; prompt and cls depend on neither.
"""

import json
import os
import subprocess
import sys

import pytest
from fake_experts import make_experts
from fakes import make_llama

from transformer2.cli import main

pytestmark = pytest.mark.slow
UNSEEN = ("tiny_code_math", "tiny_math_hard", "tiny_reasoning_hard")
ROWS = ["--data.test_limit", "256", "--quiet"]


def adapt(run, *flags):
    assert main(["adapt", *flags, *ROWS, "--run_dir", str(run)]) == 0
    return json.loads((run / "report.json").read_text())


def accuracy(score):
    return 100 * score["accuracy"]


def test_dispatch_by_prompt_and_by_classifier(tmp_path):
    flags = ["--adapt.controls", "false", "--data.task"]
    by_prompt = [adapt(tmp_path / f"p{t}", "--strategy", "prompt", *flags, t) for t in UNSEEN]
    by_classifier = adapt(tmp_path / "c", "--strategy", "cls", *flags, UNSEEN[0])
    mean_base, mean_prompt = (sum(accuracy(r[key]) for r in by_prompt) / 3 for key in ("base", "result"))
    assert mean_prompt > mean_base
    dispatch = [accuracy(r["details"]["dispatch"]["with other"]) for r in (by_prompt[0], by_classifier)]
    assert 60 <= dispatch[0] <= 85 and dispatch[1] >= dispatch[0] + 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_searched_mixture_beats_every_control_where_two_skills_are_needed(seed, tmp_path):
    report = adapt(tmp_path / "run", "--seed_everything", str(seed))
    best = max(accuracy(score) for score in (report["base"], *report["controls"].values()))
    assert accuracy(report["result"]) >= best + 5, report


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", UNSEEN[1:])
def test_a_searched_mixture_is_never_worse_than_the_base(task, seed, tmp_path):
    flags = ["--data.task", task, "--seed_everything", str(seed), "--adapt.controls", "false"]
    report = adapt(tmp_path / "run", *flags)
    assert report["result"]["accuracy"] >= report["base"]["accuracy"] - report["base"]["se"]


@pytest.mark.parametrize(
    "strategy",
    [
        ["--adapt.population", "5", "--adapt.generations", "2"],
        ["--strategy", "prompt", "--adapt.dispatch_task", "tiny_dispatch", "--adapt.dispatch_limit", "15"],
    ],
    ids=["cem", "prompt"],
)
def test_two_processes_report_what_one_does(strategy, tmp_path):
    base = str(make_llama(tmp_path / "llama", init=0.25))
    experts = json.dumps(make_experts(tmp_path, base))
    few = [*strategy, "--data.few_shot", "4", "--data.eval_batch_size", "5"]
    task = ["--data.task", "toy_task.FirstLetter", "--model.base", base, "--model.dtype", "float32", "--quiet"]
    distributed = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    reports = []
    for name, more in (("one", []), ("two", distributed)):
        run = tmp_path / name
        command = [sys.executable, "-m", "transformer2", "adapt", *task, *few, "--adapt.experts", experts, *more]
        path = os.pathsep.join(p for p in sys.path if p)
        done = subprocess.run([*command, "--run_dir", str(run)], env={**os.environ, "PYTHONPATH": path}, timeout=300)
        assert done.returncode == 0
        report = json.loads((run / "report.json").read_text())
        del report["seconds"]
        reports.append((report, (run / "records.jsonl").read_text()))
    assert reports[0] == reports[1]
