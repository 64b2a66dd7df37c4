"""Reports that say why a score says little: one line each."""

import json
from dataclasses import replace

import pytest
from fake_experts import make_experts
from fakes import make_llama
from toy_task import Undecided

from transformer2.cli import main
from transformer2.report.build import build_report
from transformer2.report.notes import details
from transformer2.types import Answer, Record, Verdict

RIGHT, WRONG = Verdict.of(True, "a", "equal"), Verdict.of(False, "b", "expected a")
UNREAD, ABSTAINED = Verdict.of(False, None, "no final answer"), Verdict.abstain("no gold answer")
FAILED = Verdict(None, False, None, "verifier: hung")


def records(base, expert, base_texts="abcd", texts="efgh", base_finished=True, finished=True):
    rows = zip(base, expert, base_texts, texts, strict=True)
    return [
        Record(i, "", "", "", Answer(text, base_finished, of_base), Answer(other, finished, of_expert))
        for i, (of_base, of_expert, text, other) in enumerate(rows)
    ]


MIXED = [RIGHT, WRONG, RIGHT, WRONG]
OTHER = [RIGHT, RIGHT, WRONG, WRONG]


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        (records(MIXED, OTHER), []),
        (records(MIXED, MIXED), ["expert has the verdict of the base on every question"]),
        (records(MIXED, MIXED, texts="abcd"), ["expert answers exactly as the base, word for word"]),
        (records([WRONG] * 4, [WRONG] * 4), ["no answer is right", "expert has the verdict of the base"]),
        (records([RIGHT] * 4, [RIGHT] * 4), ["every answer is right: the task is too easy", "expert has the verdict"]),
        (records(MIXED, [UNREAD] * 4), ["expert: the verifier found an answer in none of 4 completions ('no final"]),
        (records(MIXED, OTHER, texts=["", " ", "\n", "d"]), ["expert: 3 of 4 answers are empty"]),
        (records(MIXED, OTHER, base_texts=[""] * 4), ["base: 4 of 4 answers are empty"]),
        (records(MIXED, OTHER, texts="aaaa"), ["expert: the same answer to all 4 questions, 'a'"]),
        (
            records(MIXED, OTHER, finished=False),
            ["expert: 4 of 4 answers were cut off; raise model.sampling.max_new_tokens"],
        ),
        (records(MIXED, OTHER, base_finished=False), ["base: 4 of 4 answers were cut off"]),
        (
            records([ABSTAINED, *MIXED[1:]], [ABSTAINED, *OTHER[1:]]),
            ["not scored, since the task abstains: base 1, expert 1 of 4 answers ('no gold answer' 1)"],
        ),
        (
            records(MIXED, [FAILED, *OTHER[1:]]),
            ["not scored, since the verifier failed: base 0, expert 1 of 4 answers ('verifier: hung' 1)"],
        ),
        (
            records([ABSTAINED] * 4, [ABSTAINED] * 4),
            ["not scored, since the task abstains: base 4", "no question was scored"],
        ),
        ([], ["no question was scored for both base and result"]),
    ],
)
def test_one_line_for_each_reason(rows, notes):
    found = details(rows).get("notes", [])
    assert len(found) == len(notes) and all(line.startswith(note) for line, note in zip(found, notes, strict=True)), (
        found
    )


def test_shares_and_counts():
    rows = records([ABSTAINED, FAILED, RIGHT, WRONG], [ABSTAINED, RIGHT, RIGHT, RIGHT])
    rows[0] = replace(rows[0], result=replace(rows[0].result, finished=False))
    found = details(rows)
    assert found["unfinished"] == {"base": 0.0, "result": 0.25}
    assert found["abstained"] == {"base": 1, "result": 1} and found["infra_errors"] == {"base": 1, "result": 0}


def test_questions_without_a_verdict_on_either_side_are_not_scored():
    rows = records([ABSTAINED, RIGHT, WRONG, WRONG], [RIGHT, FAILED, RIGHT, WRONG])
    found = build_report(rows, Undecided(), "clean", {}, (0,))
    assert found.n == found.base.n == found.result.n == 2
    assert (found.base.accuracy, found.result.accuracy, found.paired_p) == (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_llama(tmp_path_factory.mktemp("llama"), init=0.25))


def run(command, base, folder, task, *more):
    flags = ["--model.base", base, "--model.dtype", "float32", "--trainer.accelerator", "cpu", "--quiet"]
    done = main([command, "--data.task", f"toy_task.{task}", *flags, "--run_dir", str(folder), *more])
    assert done == 0
    report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN: it is not JSON
    return report, [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_abstentions_are_left_out_of_the_score(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Undecided, "share", 0.5)
    report, records = run("test", base, tmp_path / "half", "Undecided")
    assert report["n"] == report["base"]["n"] == report["result"]["n"] == 8 and len(records) == 16
    assert (
        [r["correct"] is None for r in records]
        == [r["base_correct"] is None for r in records]
        == [True] * 8 + [False] * 8
    )
    assert report["details"]["abstained"] == {"base": 8, "result": 8}
    assert all({"finished", "base_finished"} <= set(r) for r in records)
    printed = capsys.readouterr().out
    assert "test split, n = 8" in printed and "the task abstains: base 8, expert 8 of 16 answers" in printed
    assert "expert answers exactly as the base" in printed
    monkeypatch.setattr(Undecided, "share", 1.0)
    report, _ = run("test", base, tmp_path / "all", "Undecided", "--model.test.samples", "2")
    assert report["n"] == 0 and report["base"]["accuracy"] is None and report["details"]["pass_at_k"]["base"] == {}
    printed = capsys.readouterr().out
    assert "not scored" in printed and "no question was scored" in printed and "gain" not in printed
    assert main(["report", str(tmp_path / "all")]) == 0
    assert "no question was scored" in capsys.readouterr().out


def test_an_adaptation_leaves_abstentions_out_too(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Undecided, "share", 0.5)
    experts = ["--adapt.experts", json.dumps(make_experts(tmp_path, base)), "--data.few_shot", "4"]
    flags = ["--strategy", "cem", "--adapt.population", "4", "--adapt.generations", "1", *experts]
    report, records = run("adapt", base, tmp_path / "run", "Undecided", *flags)
    judged = [r for r in records if r["correct"] is not None]
    assert report["n"] == report["result"]["n"] == len(judged) == 8 and len(records) == 16
    assert {score["n"] for score in report["controls"].values()} == {8}
    assert all(r["abstained"] and r["base_abstained"] for r in records if r not in judged)
    assert report["details"]["unfinished"] == {"base": 1.0, "result": 1.0}
    assert "the task abstains: base 8, cem 8 of 16 answers" in capsys.readouterr().out


def test_samples_that_abstain_are_not_counted(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Undecided, "share", 0.5)
    report, records = run("test", base, tmp_path / "run", "Undecided", "--model.test.samples", "5")
    assert [r["samples"] for r in records] == [0] * 8 + [5] * 8
    assert report["details"]["pass_at_k"]["result"]["5"]["n"] == 8


def test_fit_and_validate_say_that_nothing_was_learnt(base, tmp_path, capsys):
    with pytest.warns(UserWarning, match="3 steps in a row had nothing to learn from: every reward was -1"):
        steps = ["--trainer.max_steps", "3", "--data.batch_size", "8", "--config", "conf/tiny.yaml"]
        steps += ["--trainer.logger", "false"]
        report, _ = run("fit", base, tmp_path / "fit", "Never", *steps)
    notes = report["details"]["notes"]
    assert notes[0] == "3 of 3 training steps had nothing to learn from (equal rewards, or none)"
    printed = capsys.readouterr().out
    assert all(note in printed for note in notes) and any(note.startswith("no answer is right") for note in notes)
    flags = ["--model.base", base, "--model.dtype", "float32", "--trainer.accelerator", "cpu", "--quiet"]
    assert main(["validate", "--data.task", "toy_task.Never", *flags, "--run_dir", str(tmp_path / "v")]) == 0
    assert "model: 16 of 16 answers were cut off; raise model.sampling.max_new_tokens" in capsys.readouterr().out


def test_a_stop_string_from_the_command_line(base, tmp_path):
    stop = ["--model.sampling.stop", "['<|end_header_id|>', 17, 'a']", "--model.sampling.max_new_tokens", "48"]
    _, records = run("test", base, tmp_path / "run", "FirstLetter", *stop)
    assert {r["finished"] for r in records} == {True, False} or all(r["finished"] for r in records)
    assert not any("a" in r["completion"] for r in records)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "- <|end_header_id|>\n    - 17\n    - a\n" in config


@pytest.mark.parametrize("value", ["['']", "[true]", "[1.5]"])
def test_an_odd_stop_is_a_users_error(base, tmp_path, value, capfd):
    flags = ["--model.base", base, "--data.task", "toy_task.Never", "--quiet", "--run_dir", str(tmp_path / "run")]
    assert main(["test", *flags, "--model.sampling.stop", value]) == 2
    assert "stop" in capfd.readouterr().err


@pytest.mark.parametrize(("value", "warned"), [("""['\\n']""", True), ("""["\\n"]""", False)])
def test_a_line_break_is_one(value, warned, base, tmp_path, recwarn):
    run("test", base, tmp_path / "run", "FirstLetter", "--model.sampling.stop", value, "--data.test_limit", "2")
    assert any("double quotes" in str(w.message) for w in recwarn) == warned


def test_numbers_in_quotes_are_strings(tmp_path, base):
    from transformer2.cli.experiment import Experiment

    model = {"base": base, "sampling": {"stop": ["5", 5]}}
    experiment = Experiment({"model": model, "trainer": {"accelerator": "cpu"}}, tmp_path, quiet=True)
    assert experiment.module.sampling.stop == ["5", 5]
    experiment.module.configure_model()
    assert experiment.module.engine.stop == ["5"] and 5 in experiment.module.engine.eos_ids
