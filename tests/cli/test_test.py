"""`transformer2 test` on real ARC rows, with samples for pass@k, on two processes; and a task of somebody else's."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import make_llama

from transformer2 import tiny
from transformer2.cli import main
from transformer2.cli.compose import compose
from transformer2.cli.keys import KEYS
from transformer2.cli.train import take_from_expert
from transformer2.svf.format import checksums

SMALL = ["--model.sampling.max_new_tokens", "6", "--model.dtype", "float32", "--trainer.accelerator", "cpu", "--quiet"]
TASKS_PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def read(run):
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    return json.loads((run / "report.json").read_text()), records


def arc(task, base, data, run, *more):
    config = ["--config", "conf/llama8b_gsm8k.yaml", "--data.task", task, "--model.base", str(base)]
    return [
        "test",
        *config,
        "--data.data_dir",
        str(data),
        "--data.test_limit",
        "5",
        *SMALL,
        "--run_dir",
        str(run),
        *more,
    ]


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_arc_from_the_command_to_the_files(task, llama_folder, some_rows, tmp_path, capsys):
    assert main(arc(task, llama_folder, some_rows, tmp_path / "run")) == 0
    report, records = read(tmp_path / "run")
    assert report["task"] == task and report["n"] == 5 and report["protocol"] == "clean"
    assert set(report["details"]) == {"unfinished", "notes"} and report["details"]["unfinished"]["base"] == 1.0
    assert [r["id"] for r in records] == [f"{task}/test/{i}" for i in range(5)]
    assert all(r["answer"] in "ABCD" and isinstance(r["correct"], bool) for r in records)
    assert f"{task}   test split, n = 5" in capsys.readouterr().out


def test_samples_give_pass_at_k(tmp_path, capsys):
    base = make_llama(tmp_path / "llama", init=0.25)
    flags = ["--data.task", "toy_task.FirstLetter", "--model.base", str(base), "--model.test.samples", "5", *SMALL]
    assert main(["test", *flags, "--run_dir", str(tmp_path / "run")]) == 0
    report, records = read(tmp_path / "run")
    scores = report["details"]["pass_at_k"]["result"]
    assert set(scores) == {"1", "5"} and scores["1"]["n"] == len(records) == 16
    assert scores["1"]["pass"] == pytest.approx(sum(r["right"] for r in records) / (5 * 16))
    assert scores["5"]["pass"] == pytest.approx(sum(r["right"] > 0 for r in records) / 16)
    assert 0 < scores["1"]["pass"] < scores["5"]["pass"] and all(r["samples"] == 5 for r in records)
    assert report["details"]["pass_at_k"]["base"] == scores, "an untrained expert is the base, with the same seeds"
    assert "pass@5" in capsys.readouterr().out


def test_a_dispatch_task_reports_its_confusion(llama_folder, some_rows, tmp_path, capsys):
    options = "{experts: {math: gsm8k, reasoning: arc_easy}, protocol: paper, prompts_per_category: 40}"
    flags = ["--data.task_options", options, "--data.test_limit", "12"]
    assert main(arc("dispatch", llama_folder, some_rows, tmp_path / "run", *flags)) == 0
    report, _ = read(tmp_path / "run")
    assert report["protocol"] == "paper" and report["n"] == 12
    details = report["details"]
    assert details["dispatch"]["with other"]["n"] == 12 > details["dispatch"]["without other"]["n"]
    assert sum(sum(row.values()) for row in details["confusion"].values()) == 12
    assert "dispatch, without other" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_rows_that_share_one_id_are_told_apart(verb, llama_folder, tmp_path):
    flags = ["--config", "conf/base.yaml", "--data.task", "toy_task.SameIds", "--model.base", str(llama_folder), *SMALL]
    short = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--data.batch_size", "4"]
    short += ["--trainer.logger", "false"]
    with pytest.warns(UserWarning, match="15 rows of same_ids/test repeat an earlier id"):
        command = [verb, *flags, *short, "--data.keep_prompts", "true", "--data.eval_batch_size", "5"]
        assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    report, records = read(tmp_path / "run")
    assert report["base"]["accuracy"] == report["result"]["accuracy"] == 0.5 and report["paired_p"] == 1
    assert [(r["row"], r["question"]) for r in records] == [(i, f"say {80 + i}") for i in range(16)]
    assert all(r["correct"] == r["base_correct"] == (r["row"] % 2 == 0) for r in records)
    assert records[3]["prompt"].endswith("say 83<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.parametrize("options", ["task_options", "task_options.prompt"])
def test_a_prompt_of_one_s_own_reaches_the_model_and_the_records(options, llama_folder, some_rows, tmp_path, capsys):
    prompt = "Q: {question} \\boxed{}"
    value = json.dumps({"system": None, "prompt": prompt} if options == "task_options" else prompt)
    flags = [f"--data.{options}", value, "--data.keep_prompts", "true", "--data.drop_long_prompts", "true"]
    assert main(arc("gsm8k", llama_folder, some_rows, tmp_path / "run", *flags)) == 0
    for record in read(tmp_path / "run")[1]:
        assert record["question"].startswith("Q: ") and record["question"].endswith(" \\boxed{}")
        assert record["question"] in record["prompt"] and ("system" in record["prompt"]) == (options != "task_options")
    again = ["test", "--config", str(tmp_path / "run" / "config.yaml"), "--quiet", "--run_dir", str(tmp_path / "again")]
    assert main(again) == 0 and read(tmp_path / "again")[1] == read(tmp_path / "run")[1]
    assert main(arc("gsm8k", llama_folder, some_rows, tmp_path / "no", "--data.task_options.prompt", "{question}")) == 2
    assert "prompt {'question': None} is not text; YAML wants it in quotes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", ["arc_easy", "toy_task.SameIds"])
def test_two_processes_report_what_one_does(task, llama_folder, some_rows, tmp_path):
    reports = []
    distributed = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.eval_batch_size", "3"]
    for name, more in (("one", []), ("two", distributed)):
        command = [
            sys.executable,
            "-m",
            "transformer2",
            *arc(task, llama_folder, some_rows, tmp_path / name, *more),
        ]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        assert subprocess.run(command, env=env, timeout=300).returncode == 0
        report, records = read(tmp_path / name)
        del report["seconds"]
        reports.append((report, records))
    assert reports[0] == reports[1]


@pytest.fixture
def outside(tmp_path):
    """A folder with the task of docs/tasks.md, its words, and nothing of ours."""
    page = TASKS_PAGE.read_text()
    (tmp_path / "mytasks.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    (tmp_path / "words").mkdir()
    words = {"train": "stone river cloud house", "validation": "table", "test": "night bread"}
    for split, text in words.items():
        (tmp_path / "words" / f"{split}.txt").write_text(text)
    return tmp_path


def test_a_task_beside_the_command_is_trained_on(outside, llama_folder, monkeypatch, capsys):
    # As for the installed console script: the working directory is not on sys.path.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and Path(p).name not in ("tests", "helpers")])
    monkeypatch.chdir(outside)
    monkeypatch.delitem(sys.modules, "mytasks", raising=False)  # of another test
    task = "{task: mytasks.Reverse, data_dir: words, task_options: {ask: 'Write {!r} from its end.'}, batch_size: 4}"
    (outside / "mine.yaml").write_text(
        f"_base_: conf/tiny.yaml\ndata: {task}\ntrainer: {{max_steps: 1, logger: false}}\n"
    )
    command = ["fit", "--config", "mine.yaml", "--model.base", str(llama_folder), *SMALL, "--run_dir"]
    assert main([*command, "run"]) == 0
    report, records = read(outside / "run")
    assert report["task"] == "reverse" and {r["answer"] for r in records} == {"thgin", "daerb"}
    assert "ask: Write {!r} from its end." in (outside / "run" / "config.yaml").read_text()
    assert main([*command, "other", "--data.task_options", "{aks: 1}"]) == 2
    assert "task 'mytasks.Reverse' has no option 'aks'; did you mean 'ask'?" in capsys.readouterr().err
    assert main([*command, "other", "--data.task", "mytask.Reverse"]) == 2
    assert "task 'mytask.Reverse' cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["trap.Task", "trap"])
@pytest.mark.parametrize("verb", ["test", "validate"])
def test_an_expert_does_not_say_whose_code_is_run(verb, task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()")
    shutil.copytree(tiny.expert_path("math"), tmp_path / "expert")
    config = tmp_path / "expert" / "adapter_config.json"
    config.write_text(json.dumps(checksums(json.loads(config.read_text()) | {"task": task})))
    assert main([verb, "--expert", "expert"]) == 2
    assert f"expert was trained on '{task}', a task of its own: give --data.task" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def test_a_shuffled_expert_is_scored_and_said_to_be_a_control(world, tmp_path, capsys):
    flags = ["--expert", world[1][0], "--data.task", "toy_task.FirstLetter", *SMALL]
    for name, more in (("ordered", []), ("shuffled", ["--shuffle_expert", "3"])):
        assert main(["test", *flags, *more, "--run_dir", str(tmp_path / name)]) == 0
    (ordered, told), (shuffled, other) = (read(tmp_path / name) for name in ("ordered", "shuffled"))
    assert ordered["base"] == shuffled["base"] and "shuffled" not in ordered["details"]
    assert [r["completion"] for r in told] != [r["completion"] for r in other]
    weights = hashlib.sha256((Path(world[1][0]) / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert ordered["details"]["made_from"] == shuffled["details"]["made_from"] == {Path(world[1][0]).name: weights}
    assert shuffled["details"]["shuffled"] == 3 and "a control" in shuffled["details"]["notes"][0]
    assert "a control" in capsys.readouterr().out
    assert main(["test", "--shuffle_expert", "3", *flags[2:]]) == 2
    assert main(["fit", *flags, "--shuffle_expert", "3"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "needs --expert" in first and "unknown flag --shuffle_expert" in second


@pytest.mark.parametrize(("said", "kind"), [(False, None), (True, "SVF")])
def test_an_experts_method_goes_before_that_of_a_config_unless_a_flag_says_it(said, kind, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    config = compose(["conf/tiny.yaml"], [], KEYS)
    assert config["model"]["adapter"]["peft_type"] == "SVF"
    take_from_expert(config, "test", tmp_path, said=said)
    assert config["model"].get("adapter", {}).get("peft_type") == kind
