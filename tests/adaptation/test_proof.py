"""What self-adaptation promises on the embedded model, as `transformer2 adapt` delivers it. Slow: `nox -s proof`.

A seed is a whole chain: experts trained by RL with that seed (those of seed 0 ship with the package), few-shot rows
chosen by it, a search driven by it. All 512 test rows of each unseen task are scored. Training the experts of two seeds
takes 5 CPU minutes a seed; PROOF_EXPERTS names a folder where they are kept and found again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_experts import make_experts
from fakes import make_llama

from transformer2 import tiny
from transformer2.cli import main

pytestmark = pytest.mark.slow
UNSEEN = ("tiny_code_math", "tiny_math_hard", "tiny_reasoning_hard")
NAMES = (*tiny.EXPERTS, tiny.CLASSIFIER)


@pytest.fixture(scope="module", params=[0, 1, 2])
def reports(request, tmp_path_factory):
    """Task -> strategy -> report, of `transformer2 adapt --strategy all`, for one seed."""
    seed = request.param
    folders = {name: tiny.expert_path(name) for name in NAMES} if seed == 0 else trained(seed, tmp_path_factory)
    experts = json.dumps([str(folders[name]) for name in tiny.EXPERTS])
    found = {}
    for task in UNSEEN:
        run = tmp_path_factory.mktemp("runs") / task
        flags = ["--strategy", "all", "--data.task", task, "--seed_everything", str(seed), "--adapt.experts", experts]
        more = ["--adapt.classifier", str(folders[tiny.CLASSIFIER]), "--quiet", "--run_dir", str(run)]
        assert main(["adapt", *flags, *more]) == 0
        found[task] = json.loads((run / "report.json").read_text())["strategies"]
        assert all(report["n"] == 512 and report["protocol"] == "clean" for report in found[task].values())
    return found


def trained(seed, tmp_path_factory):
    root = Path(os.environ.get("PROOF_EXPERTS") or tmp_path_factory.mktemp("experts")) / f"seed_{seed}"
    if not root.exists():
        command = [sys.executable, "-m", "transformer2.tiny.train_experts", "--out", str(root), "--seed", str(seed)]
        subprocess.run(command, check=True)
    return {name: root / name for name in NAMES}


def accuracy(score):
    return 100 * score["accuracy"]


def test_the_classification_expert_dispatches_better_than_the_prompt(reports):
    dispatch = {s: reports[UNSEEN[0]][s]["details"]["dispatch"]["with other"] for s in ("prompt", "cls")}
    assert 60 <= accuracy(dispatch["prompt"]) <= 85
    assert accuracy(dispatch["cls"]) >= accuracy(dispatch["prompt"]) + 10


def test_dispatch_by_prompt_is_better_than_the_base_on_the_mean_of_the_unseen_tasks(reports):
    mean_base, mean_prompt = (
        sum(accuracy(r["prompt"][key]) for r in reports.values()) / 3 for key in ("base", "result")
    )
    assert mean_prompt > mean_base


def test_a_searched_mixture_beats_every_control_where_two_skills_are_needed(reports):
    report = reports["tiny_code_math"]["cem"]
    assert len(report["controls"]) == 5
    best = max(accuracy(score) for score in (report["base"], *report["controls"].values()))
    assert accuracy(report["result"]) >= best + 5


@pytest.mark.parametrize("task", UNSEEN[1:])
def test_a_searched_mixture_is_never_worse_than_the_base(reports, task):
    report = reports[task]["cem"]
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
