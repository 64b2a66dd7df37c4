"""Studies run what is missing, several at a time, through failures, kills and company."""

import json
import os
import shutil
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
from transformer2.cli.compose import PACKAGED
from transformer2.cli.study import Plan, _doubts
from transformer2.cli.study_run import composed
from transformer2.study.results import Run, Study, read_study
from transformer2.study.schedule import Job

RUNNER = f"{sys.executable} {Path(__file__).parents[1] / 'helpers' / 'study_runner.py'}"


def of_task(task):
    return {"command": "fit", "config": ["conf/base.yaml"], "set": {"data.task": task, "data.data_dir": "/"}}


FIT = of_task("gsm8k")
TINY = {"config": ["conf/tiny_math.yaml"], "set": {}}
SVF = {"model.adapter": {"peft_type": "SVF"}}
ADAPT = {"command": "adapt", "set": {"data.task": "math", "adapt.experts": ["@svf/expert"]}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a study of some runs and run it; (exit code, its folder of runs)."""
    monkeypatch.chdir(tmp_path)

    def start(runs, *more, seeds=(0,), wait=True, launcher=RUNNER):
        content = {"title": "t", "build": "table1", "seeds": list(seeds), "runs": runs}
        Path("s.yaml").write_text(yaml.safe_dump(content))
        args = ["study", "s.yaml", "--launcher", launcher, "--quiet", *more]
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


def test_what_a_tuned_run_is_made_from_is_run_under_its_seed_too(run):
    """Else it would wait for it for ever."""
    tuned = {**FIT, "expert": "@a/expert", "tune": {"model.optimizer.lr": [0.01, 0.5]}}
    assert run({"a": {**FIT, "expert": "@b/expert"}, "b": FIT, "tuned": tuned}) == 0
    assert Counter(dict(pairwise(words))["--seed_everything"] for words in calls()) == {"100": 4, "0": 3}


def test_a_section_in_set_is_on_top_of_the_config_and_the_base(run):
    """Else it would be the default's task, or base, under the names of these."""
    sections = {"data": {"test_limit": 5}, "model": {"memory": {"micro_batch_tokens": 64}}}
    svf = {"command": "fit", "config": ["conf/tiny_code.yaml"], "set": {"model.base": "${base}", **sections}}
    assert run({"svf": svf}, "--base", "tiny_b", "--dry_run") == 0
    (job,) = Plan("s.yaml", Path("runs"), set(), {"base": "tiny_b"}).jobs()[0]
    config = composed(job.args)
    assert (config["data"]["task"], config["model"]["base"], config["data"]["test_limit"]) == ("tiny_code", "tiny_b", 5)


def test_a_changed_setting_is_another_run_and_the_same_one_is_shared_between_names(run):
    assert run({"a": FIT}) == 0
    named = {
        **FIT,
        "set": {**FIT["set"], "trainer.max_steps": 7, "name": "mine"},
    }  # which its folder takes no notice of
    assert run({"a": FIT, "b": named}) == 0
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


def test_a_killed_run_resumes_from_its_checkpoint(run):
    killed = {"k": of_task("mbpp")}
    assert run(killed) == 1
    assert run(killed) == 0
    first, second = calls()
    assert "--ckpt_path" not in first
    assert Path(second[second.index("--ckpt_path") + 1]).name == "last.ckpt"
    assert not list(Path("runs/studies/runs").glob(".*.cut"))


def test_a_cut_adapt_is_resumed_with_its_experts_where_they_are_now(tmp_path):
    experts = ("--adapt.experts", "[new/runs/fit-a/expert]", "--adapt.classifier", "new/runs/fit-b/expert")
    job = Job("a", ("adapt", "--data.task", "math", *experts, "--seed_everything", "0"), tmp_path)
    (tmp_path / "config.yaml").touch()
    assert job.command() == ["adapt", "--resume", str(tmp_path), *experts, "--quiet"]


def test_a_checkpoint_that_is_refused_is_given_up_for_the_one_before_it(run):
    """A damaged last.ckpt would end the run in the same way for ever."""
    killed = {"k": of_task("mbpp")}
    assert run(killed) == 1
    (folder,) = Path("runs/studies/runs").glob("fit-mbpp-*/")
    (folder / "checkpoints" / "last.ckpt").write_text("damaged")
    (folder / "checkpoints" / "previous.ckpt").write_text("half of it")
    assert run(killed) == 1
    assert run(killed) == 0
    resumed = [Path(words[words.index("--ckpt_path") + 1]).name for words in calls()[1:]]
    assert resumed == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("damage", ["{", "{}", "[]", ""])
def test_a_damaged_report_is_none_and_its_run_is_made_again(run, damage):
    runs = {"svf": {**FIT, "tune": {"model.optimizer.lr": [0.01, 0.03]}}}
    assert run(runs) == 0
    for report in Path("runs/studies/runs").glob("*/report.json"):
        report.write_text(damage)
    assert run(runs, "--dry_run") == 0
    assert run(runs) == 0
    assert len(calls()) == 6 and set(states().values()) == {"done"}


def test_rows_or_an_expert_that_were_replaced_are_another_run(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text("1")
    options = {"data.task": "jsonl", "data.task_options": {"path": str(tmp_path / "rows.jsonl")}}
    mine = {"mine": {"command": "fit", "config": ["conf/base.yaml"], "set": options}}
    assert run(mine) == 0
    (tmp_path / "rows.jsonl").write_text("2")
    assert run(mine) == 0
    assert len(calls()) == 2


@pytest.mark.parametrize(
    ("task", "inside", "read", "unread"),
    [
        ("gsm8k", "", ["gsm8k/train.jsonl", "gsm8k/test.parquet"], ["math/train.jsonl", "gsm8k/README.md"]),
        ("gsm8k", "gsm8k", ["gsm8k/train.jsonl.gz"], ["math/train.jsonl"]),
        ("gsm8k", "", ["gsm8k/train.jsonl", "test.jsonl"], ["math/test.jsonl"]),
        (None, "", ["gsm8k/train.jsonl", "math/main/test/data-00000-of-00001.arrow"], ["notes.txt"]),
        ("arc_challenge", "", ["arc_challenge/ARC-Challenge/test/data-00000-of-00001.arrow"], ["arc_easy/test.jsonl"]),
        ("math", "", ["math/train/data-00000-of-00001.arrow"], ["gsm8k/train.jsonl"]),
        ("dispatch", "", ["gsm8k/train.jsonl", "mbpp_pro/test.jsonl", "arc_easy/train.jsonl"], ["math/train.jsonl"]),
    ],
)
def test_rows_below_data_dir_that_were_replaced_are_another_run(run, tmp_path, task, inside, read, unread):
    options = {"data.data_dir": str(tmp_path / "rows" / inside), **({"data.task": task} if task else {})}
    mine = {"mine": {"command": "fit", "config": ["conf/base.yaml"], "set": options}}
    for name in (*read, *unread):
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / name).touch()
    made = 0
    for content in ("1", "2"):
        for name in read:
            (tmp_path / "rows" / name).write_text(content)
            made += 1
            assert run(mine) == 0 and len(calls()) == made
        for name in unread:
            (tmp_path / "rows" / name).write_text(content)
            assert run(mine) == 0 and len(calls()) == made


def test_the_rows_and_the_source_of_what_is_ones_own_count(run, tmp_path, monkeypatch):
    """The module of a task and of a callback, whatever files such a task reads, and the rows of a dispatch task."""
    (tmp_path / "ours").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    task = "from toy_task import FirstLetter\nclass Mine(FirstLetter):\n    name = 'mine'\n"
    (tmp_path / "ours.py").write_text(task)
    (tmp_path / "parts").mkdir()  # a package without an __init__.py
    (tmp_path / "parts" / "call.py").write_text("")
    (tmp_path / "rows" / "gsm8k").mkdir(parents=True)
    (tmp_path / "rows" / "gsm8k" / "train.jsonl").write_text("")
    options = {"data.task": "ours.Mine", "data.data_dir": str(tmp_path / "rows")}
    callback = [{"class_path": "parts.call.Mine"}]
    dispatch = {
        "strategy": "prompt",
        "adapt.dispatch_task": "dispatch",
        "adapt.dispatch_options": {"experts": {"math": "gsm8k"}},
    }
    runs = {
        "fit": {"command": "fit", "config": ["conf/base.yaml"], "set": {**options, "trainer.callbacks": callback}},
        "adapt": {"command": "adapt", "set": {**options, "data.data_dir": str(tmp_path / "rows"), **dispatch}},
    }
    (tmp_path / "rows" / "test.dat").write_text("")
    assert run(runs) == 0 and len(calls()) == 2
    for file, again in (("rows/test.dat", 2), ("ours.py", 2), ("parts/call.py", 1), ("rows/gsm8k/train.jsonl", 2)):
        before = len(calls())
        (tmp_path / file).write_text((tmp_path / file).read_text() + "# edited\n")
        assert run(runs) == 0 and len(calls()) - before == again, file


def test_a_config_that_is_edited_while_the_study_runs_is_not_mixed_in(run, tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text("_base_: conf/base.yaml\ndata: {test_limit: 16}\n")
    runs = {"mine": {"command": "fit", "config": [str(mine)], "set": {"data.task": "gsm8k"}}}
    edits = f"sh -c 'sed -i s/16/64/ {mine}; exec {RUNNER} \"$@\"' sh"
    assert run(runs, launcher=edits, seeds=(0, 1)) == 1
    assert states() == {("mine", 0): "done", ("mine", 1): "failed"} and len(calls()) == 1
    assert "mine s1   is not run: a file that it is given was edited while the study ran" in capsys.readouterr().err
    assert run(runs, seeds=(0, 1)) == 1  # in this process it has been read
    assert len(calls()) == 1


def test_an_adapt_without_a_config_is_another_run_where_the_users_file_is_another(run, tmp_path):
    (tmp_path / "conf").mkdir()
    mine = tmp_path / "conf" / "adapt_tiny.yaml"
    runs = {"adapt": {"command": "adapt", "set": {"data.task": "math", "data.data_dir": "/"}}}
    for content, made in (
        ("", 1),
        ((PACKAGED / "conf" / "adapt_tiny.yaml").read_text(), 1),
        ("adapt: {generations: 3}\n", 2),
        ("adapt: {experts: [mine/expert]}\n", 3),
    ):
        if content:
            mine.write_text(content)
        composed.cache_clear()
        assert run(runs) == 0 and len(calls()) == made, content
    (job,) = Plan("s.yaml", tmp_path, set(), {}).jobs()[0]
    assert job.experts == (Path("mine/expert"),)  # whose weights the report is held against


def test_the_name_of_a_config_makes_no_other_run(run, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"_base_: conf/base.yaml\nname: {name}\n")
        assert run({"mine": {"command": "fit", "config": [f"{name}.yaml"], "set": {"data.task": "gsm8k"}}}) == 0
    assert len(calls()) == 1


def test_spectra_read_no_rows(run, tmp_path):
    (tmp_path / "gsm8k").mkdir()
    fit = {**FIT, "set": {"data.task": "gsm8k"}}
    runs = {"fit": fit, "spectrum": {"command": "spectrum", "set": {"model.base": "tiny"}}}
    for content in ("1", "2"):
        (tmp_path / "gsm8k" / "train.jsonl").write_text(content)
        assert run(runs, "--data.data_dir", str(tmp_path), "--dry_run") == 0


def test_a_base_that_is_not_there_is_named_once_before_anything_runs(run, capsys):
    of_base = {"svf": {**FIT, "set": {**FIT["set"], "model.base": "${base}"}}}
    assert run(of_base, "--base", "./gone") == 0
    assert main(["study", "s.yaml", "--base", "./gone", "--quiet"]) == 0  # tables are built without it
    capsys.readouterr()
    for base, told in (
        ("./nosuch", "'./nosuch' is not a model folder"),
        ("tests", "'tests' is not a folder, and the Hub"),
    ):
        assert main(["study", "s.yaml", "--base", base]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert len(calls()) == 1


def test_a_flag_of_one_strategy_is_for_its_runs_alone(run):
    strategies = {name: {**ADAPT, "set": {"data.task": "math", "strategy": name}} for name in ("cem", "scores")}
    assert run(strategies, "--adapt.population", "4", "--trainer.max_steps", "5") == 0
    adapted = [words for words in calls() if words[0] == "adapt"]
    assert not any("--trainer.max_steps" in words for words in adapted)
    assert {("scores" in words, "--adapt.population" in words) for words in adapted} == {(True, False), (False, True)}


def test_a_base_whose_weights_were_replaced_is_another_run(run, tmp_path):
    """Its chat template counts: every prompt differs. So does a folder in it that `subfolder` names."""
    inner = tmp_path / "base" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "base" / "config.json").write_text("{}")
    (inner / "config.json").write_text("{}")
    for there, more in ((tmp_path / "base", {}), (inner, {"model.model_kwargs": {"subfolder": "inner"}})):
        before = len(calls())
        for name, content in (("model.safetensors", "1"), ("model.safetensors", "2"), ("chat_template.jinja", "3")) * 2:
            (there / name).write_text(content)
            assert run({"svf": {**FIT, "set": {**FIT["set"], "model.base": str(tmp_path / "base"), **more}}}) == 0
        assert len(calls()) - before == 4  # 1, 2, 2 and 3, 1 and 3


SCORED = {"command": "test", "expert": "@svf/expert"}
NESTED = {"command": "adapt", "set": {"data.task": "math", "adapt": {"experts": ["@svf/expert"]}}}


@pytest.mark.parametrize("scored", [SCORED, ADAPT, NESTED])
def test_what_was_made_from_an_expert_is_made_again_when_that_was_retrained(run, capsys, scored):
    runs = {"svf": FIT, "scored": scored}
    for _ in range(2):
        assert run(runs) == 0
    assert len(calls()) == 2
    (fit,) = Path("runs/studies/runs").glob("fit-*/")
    shutil.rmtree(fit)
    assert run(runs, "--dry_run") == 0
    told = capsys.readouterr().out
    assert told.count("to run") == 1 and "2 runs, 1 done (1 of them made from others; made again" in told
    assert run(runs) == 0
    assert [words[0] for words in calls()] == ["fit", scored["command"]] * 2
    assert set(states().values()) == {"done"}
    assert run(runs) == 0
    assert len(calls()) == 4


MIXED = {"svf": FIT, "all": ADAPT, "scored": {"command": "test", "expert": "@all/cem/expert"}}


def retrain():
    (fit,) = Path("runs/studies/runs").glob("fit-*/")
    shutil.rmtree(fit)


def test_what_was_made_from_a_mixture_is_made_again_too(run):
    assert run(MIXED) == 0
    retrain()
    assert run(MIXED) == 0
    assert [words[0] for words in calls()] == ["fit", "adapt", "test"] * 2
    assert run(MIXED) == 0 and len(calls()) == 6


def test_reports_that_do_not_say_their_experts_are_told_of(run, capsys):
    assert run(MIXED) == 0
    assert "which experts they are of" not in capsys.readouterr().out
    (report,) = Path("runs/studies/runs").glob("test-*/report.json")
    report.write_text(report.read_text().replace("made_from", "made_of"))
    assert run(MIXED) == 0
    assert (
        "do not say which experts they are of, as an earlier transformer2 wrote them: 1;" in capsys.readouterr().out
        and len(calls()) == 3
    )


def test_what_is_used_of_a_run_besides_its_expert_makes_nothing_stale(run):
    other = {"svf": FIT, "own": {**FIT, "set": {**FIT["set"], "data.data_dir": "@svf/elsewhere"}}}
    runs = {
        **other,
        "scored": {"command": "test", "expert": "@own/expert", "set": {"data.data_dir": "@svf"}},
    }
    assert run(runs) == 0
    assert run(runs) == 0
    assert len(calls()) == 3 and set(states().values()) == {"done"}


@pytest.mark.parametrize("broken", ["adapt", "test"])
def test_a_run_that_cannot_be_made_again_is_failed_and_its_old_result_is_kept(run, broken):
    assert run(MIXED) == 0
    retrain()
    Path("runs/studies/broken").write_text(broken)
    assert run(MIXED) == 1
    assert states()[("scored", 0)] == "failed"
    assert len(list(Path("runs/studies/runs").glob(f".{broken}-*.old/report.json"))) == 1
    Path("runs/studies/broken").unlink()
    assert run(MIXED) == 0
    assert set(states().values()) == {"done"} and not list(Path("runs/studies/runs").glob(".*.old"))


def test_a_checkpoint_that_began_with_another_expert_is_given_up(run):
    further = {"svf": FIT, "k": {**of_task("mbpp"), "expert": "@svf/expert"}}
    assert run(further) == 1  # killed, with a checkpoint
    shutil.rmtree(next(Path("runs/studies/runs").glob("fit-gsm8k-*/")))
    assert run({"svf": FIT}) == 0
    assert run(further) == 1
    assert "--ckpt_path" not in calls()[-1]


def test_a_name_that_yaml_does_not_read_as_text_is_refused(run, capsys):
    assert run({True: FIT}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs.True: a run's name is text" in line


def test_a_long_text_is_no_path(run):
    assert run({"svf": {**FIT, "set": {**FIT["set"], "model.model_kwargs": {"x": "a" * 5000}}}}, "--dry_run") == 0


def test_bases_of_the_same_last_name_have_folders_of_their_own(run):
    for base in ("a/Llama-3.1-8B", "a/Llama-3.2-1B", "b/Llama-3.1-8B"):
        assert run({"svf": {**FIT, "set": {**FIT["set"], "model.base": "${base}"}}}, "--base", base) == 0
    assert len(list(Path("runs/studies").glob("s-*/study.json"))) == 3


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


def test_a_signal_ends_what_runs_and_says_how_to_resume(run):
    process = run({"slow": of_task("arc_easy")}, wait=False)
    wait_for("runs/studies/waiting", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and b"the same command resumes them" in err
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
        ({"tune": {"model.optimizer.lr": [0.1, 0.2]}}, ("--model.optimizer.lr", "3"), "chooses model.optimizer.lr"),
        ({"tune": {"model.optimizer.lr": [0.1, 0.2]}}, ("--model.optimizer", "SGD"), "chooses model.optimizer.lr"),
        ({"tune": {"model.optimizer.lr": [0.1]}}, ("--optimizer.init_args.lr", "3"), "chooses model.optimizer.lr"),
        ({"tune": {"model.optimizer.init_args.lr": [0.1]}}, ("--optimizer.lr", "3"), "chooses model.optim"),
        ({"tune": {"model.optimizer.lr": [0.1]}}, ("--trainer.max_steps", "9"), "none within its 9 steps"),
        ({"tune": {"model.optimizer.lr": [0.1]}}, ("--trainer.limit_val_batches", "0"), "is tuned on validation"),
        ({"tune": {"data.few_shot": [3]}, "set": {"data.task": "math"}}, (), "is tuned on validation"),
        ({"tune": {"model.optimizer.lr": [0.1]}}, ("--seeds", "99,100"), "tuned under seed 100"),
        ({"command": "adapt", "config": [], "set": {"strategy": "cems"}}, (), "did you mean 'cem'?"),
        ({"command": "adapt", "set": {"strategy": "cls", "adapt.generations": 3}}, (), "adapt.generations for --strat"),
        ({}, ("--model.base", "tiny_b"), "write --base"),
        ({}, ("--model", "{base: tiny_b}"), "write --base"),
        ({}, ("--data.task", "math"), "runs.svf sets data.task by itself"),
        ({}, ("--data", "{task: math}"), "runs.svf sets data.data_dir by itself"),
        ({**TINY, "matrix": {"skill": ["math"]}}, ("--data.task", "tiny_code"), "the label skill says which task"),
        ({**TINY, "set": SVF}, ("--model.adapter", "{peft_type: LORA}"), "sets model.adapter.peft_type by itself"),
        ({**TINY, "set": SVF}, ("--model.adapter.peft_type", "LORA"), "sets model.adapter.peft_type by itself"),
        ({**TINY, "set": {"model.optimizer": "AdamW"}}, ("--optimizer", "SGD"), "sets model.optimizer.class_path"),
        ({}, ("--adapt.population", "4"), "no run of s takes --adapt.population"),
        ({}, ("--other_base", "nosuch"), "no run of s takes --other_base"),
        ({}, ("--docs", "docs", "--dry_run"), "leave --docs out"),
        ({}, ("./s.yaml",), "would both be kept in runs/studies/s"),
        ({}, ("--seed", "0"), "did you mean --seeds?"),
        ({}, ("--seeds", "0,00"), "seeds"),
        ({"set": {**FIT["set"], "seed_everything": 3}}, (), "seed_everything"),
        ({"seeds": [0, 0]}, (), "seeds"),
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


def test_what_a_flag_of_the_command_stands_above(tmp_path, monkeypatch, capsys):
    """Seeds of a run's own, and the base of a world file; a detail of what a run sets is none of these."""
    monkeypatch.chdir(tmp_path)
    svf = {**FIT, **TINY, "set": SVF, "seeds": [7]}
    Path("s.yaml").write_text(yaml.safe_dump({"build": "table1", "seeds": [0], "runs": {"svf": svf, "fit": FIT}}))
    assert main(["study", "--seeds", "3,4", "--model.adapter.basis_cache", "bases", "s.yaml", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "svf s3" in printed and "svf s7" not in printed and "4 runs" in printed
    real = Plan("s.yaml", tmp_path, set(), {"world": "conf/paper/world/real.yaml"})
    assert real.study.base.startswith("meta-llama/") and real.folder.name != "s"


def test_several_versions_or_numbers_of_questions_are_told_of_runs_of_all_strategies():
    wholes = [{"strategies": {"cem": {"n": n, "versions": {"torch": v}}}} for n, v in ((64, "2.8"), (512, "2.9"))]
    runs = tuple(Run("adapt", seed, {}, "", "done", whole) for seed, whole in enumerate(wholes))
    asked, made = _doubts(Study("t", "", "", "tiny", "table2", (0, 1), runs))
    assert "64 and 512 questions" in asked and "torch 2.8 and 2.9" in made


def test_the_command_is_kept_without_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = {**FIT, "set": {"data.task": "gsm8k"}}
    empty = dict.fromkeys(("title", "paper", "note"))
    Path("s.yaml").write_text(yaml.safe_dump({**empty, "build": "table1", "runs": {"svf": fit}}))
    options = {"base": "/models/mine/llama", "seeds": "0,1"}
    more = [("data.data_dir", "/data/of/mine"), ("trainer.max_steps", "3")]
    plan = Plan(str(tmp_path / "s.yaml"), Path("runs"), set(), options, more)
    assert (plan.found().title, plan.found().paper, plan.found().note) == ("s", "", "")  # of keys without a value
    rest = "--base llama --seeds 0,1 --data.data_dir mine --trainer.max_steps 3"
    assert plan.command == f"transformer2 study s.yaml {rest}"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("seeds", 3, "seeds"), ("tuning_seed", "abc", "tuning_seed"), ("seed", [0, 1], "seeds"), ("buidl", "x", "build")],
)
def test_a_study_file_with_an_odd_head_is_refused(tmp_path, monkeypatch, capsys, key, value, named):
    monkeypatch.chdir(tmp_path)
    content = {"build": "table1", "runs": {"svf": FIT}, key: value}
    Path("s.yaml").write_text(yaml.safe_dump(content))
    assert main(["study", "s.yaml", "--launcher", RUNNER, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert named in err and len(err.splitlines()) == 1


def test_an_expert_of_a_run_with_other_seeds_is_refused(run, capsys):
    """It would be the same expert under each seed, and its interval over seeds none."""
    runs = {"svf": {**FIT, "seeds": [7]}, "on": {"command": "test", "expert": "@svf/expert"}}
    assert run(runs, seeds=(0, 1)) == 2
    assert "@svf under seed 0, which has seeds 7 alone" in capsys.readouterr().err


def test_a_launcher_that_is_no_command_is_refused(run, capsys):
    assert run({"svf": FIT}, launcher="no-such-program -m transformer2") == 2
    assert "no-such-program is no command" in capsys.readouterr().err
