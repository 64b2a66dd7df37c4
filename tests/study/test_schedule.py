"""Studies run what is missing, several at a time, through failures, kills and company."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from transformer2.cli import main
from transformer2.cli.study import Plan
from transformer2.study.results import read_study

RUNNER = f"{sys.executable} {Path(__file__).parents[1] / 'helpers' / 'study_runner.py'}"


def of_task(task):
    return {"command": "fit", "config": ["conf/base.yaml"], "set": {"data.task": task, "data.data_dir": "/"}}


FIT = of_task("gsm8k")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a study of some runs and run it; (exit code, its folder of runs)."""
    monkeypatch.chdir(tmp_path)

    def start(runs, *more, seeds=(0,), wait=True):
        content = {"title": "t", "build": "table1", "seeds": list(seeds), "runs": runs}
        Path("s.yaml").write_text(yaml.safe_dump(content))
        args = ["study", "s.yaml", "--launcher", RUNNER, "--quiet", *more]
        if wait:
            return main(args)
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.Popen([sys.executable, "-m", "transformer2", *args], env=environment, stderr=subprocess.PIPE)

    return start


def calls():
    file = Path("runs/studies/calls.txt")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def study():
    return read_study(Path("runs/studies/s"))


def states():
    return {(run.name, run.seed): run.state for run in study().runs}


def test_tuned_on_validation_under_a_seed_of_its_own_and_run_once(run):
    runs = {"svf": {**FIT, "tune": {"model.optimizer.lr": [0.01, 0.03, 0.5]}}}
    assert run(runs, "--jobs", "2", seeds=(0, 1)) == 0
    flags = [dict(pairwise(words)) for words in calls()]
    asked = Counter((given["--model.optimizer.lr"], given["--seed_everything"]) for given in flags)
    tried = [(rate, "100") for rate in ("0.01", "0.03", "0.5")]
    assert asked == Counter([*tried, ("0.01", "0"), ("0.01", "1")])
    (tuned,) = study().tuning
    assert tuned.chosen == 0 and [v["validation"] for v in tuned.values] == pytest.approx([0.99, 0.99, 0.52])
    assert run(runs, "--jobs", "2", seeds=(0, 1, 2)) == 0
    assert len(calls()) == 6  # only the new seed


def test_a_changed_setting_is_another_run_and_the_same_one_is_shared_between_names(run):
    assert run({"a": FIT}) == 0
    assert run({"a": FIT, "b": {**FIT, "set": {**FIT["set"], "trainer.max_steps": 7}}}) == 0
    assert len(calls()) == 2
    assert run({"c": FIT, "d": FIT}) == 0
    assert len(calls()) == 2


def test_a_failed_run_stops_nothing_but_what_needs_it(run, capsys):
    broken = of_task("humaneval")
    tests = {"command": "test", "expert": "@bad/expert"}
    assert run({"bad": broken, "on_bad": tests, "good": FIT, "on_good": {**tests, "expert": "@good/expert"}}) == 1
    assert states() == {("bad", 0): "failed", ("on_bad", 0): "failed", ("good", 0): "done", ("on_good", 0): "done"}
    assert len(calls()) == 3
    assert run({"bad": broken, "good": FIT}) == 1
    assert len(calls()) == 4  # it is tried again, as whatever was wrong may have been put right


def test_a_killed_run_goes_on_from_its_checkpoint(run):
    killed = {"k": of_task("mbpp")}
    assert run(killed) == 1
    assert run(killed) == 0
    first, second = calls()
    assert "--ckpt_path" not in first
    assert Path(second[second.index("--ckpt_path") + 1]).name == "last.ckpt"
    assert not list(Path("runs/studies/runs").glob(".*.cut"))


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def test_killed_in_the_middle_and_started_again_it_repeats_no_finished_run(run):
    slow = {"first": FIT, "slow": of_task("arc_easy"), "last": {**FIT, "set": {**FIT["set"], "trainer.max_steps": 9}}}
    process = run(slow, wait=False)
    wait_for("runs/studies/waiting", process)
    process.kill()
    process.wait()
    # What it had begun runs on and stays claimed: the second command waits for it instead of starting it again.
    again = run(slow, wait=False)
    time.sleep(1)
    Path("runs/studies/go").touch()
    assert again.wait(60) == 0
    assert len(calls()) == 3 and set(states().values()) == {"done"}


def test_a_signal_ends_what_runs_and_says_how_to_go_on(run):
    process = run({"slow": of_task("arc_easy")}, wait=False)
    wait_for("runs/studies/waiting", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and b"the same command goes on" in err
    Path("runs/studies/go").touch()
    assert run({"slow": of_task("arc_easy")}) == 0 and len(calls()) == 2


def test_several_commands_share_the_work(run):
    runs = {f"r{i}": {**FIT, "set": {**FIT["set"], "trainer.max_steps": i}} for i in range(1, 9)}
    both = [run(runs, wait=False) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(calls()) == 8


def test_a_dry_run_prints_command_lines_and_makes_nothing(run, capsys):
    assert run({"svf": {**FIT, "tune": {"model.optimizer.lr": [0.1, 0.2]}}}, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert printed.count("to run") == 2 and "1 more once their settings are chosen" in printed
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "more", "named"),
    [
        ({"set": {"model.optimizer.lrr": 1}}, (), "lrr"),
        ({"set": {"data.task": "gsm9k"}}, (), "gsm8k"),
        ({"config": ["conf/tiny_maths.yaml"]}, (), "tiny_math"),
        ({"config": []}, (), "config"),
        ({}, ("--jobs", "0"), "jobs"),
        ({}, ("--seeds", "1,1"), "seeds"),
        ({}, ("--seeds", "x"), "seeds"),
        ({}, ("--job", "2"), "jobs"),
        ({}, ("--model.optimiser.lr", "2"), "optimi"),
    ],
)
def test_refused_before_anything_runs(run, capsys, change, more, named):
    assert run({"svf": {**FIT, **change}}, *more) == 2
    err = capsys.readouterr().err
    assert named in err and len(err.splitlines()) == 1
    assert not calls()


def test_the_command_is_kept_without_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump({"title": "t", "build": "table1", "runs": {"svf": FIT}}))
    options = {"base": "/models/mine/llama", "seeds": "0,1"}
    more = [("data.data_dir", "/data/of/mine"), ("trainer.max_steps", "3")]
    plan = Plan(str(tmp_path / "s.yaml"), Path("runs"), options, more)
    rest = "--base llama --seeds 0,1 --data.data_dir mine --trainer.max_steps 3"
    assert plan.command == f"transformer2 study s.yaml {rest}"
