"""Runs of the embedded model that collapse, that stop early, that resume: from the command to the table."""

import json
import warnings

import pytest
from safetensors.torch import load_file

from transformer2.checkpoints import read_checkpoint
from transformer2.cli import main
from transformer2.report.curve import read_scalars

STOP = ("--config", "conf/preset/early_stop.yaml")
FIT = [
    *("fit", "--config", "conf/tiny.yaml", "--quiet"),
    *("--data.batch_size", "16", "--data.validation_limit", "16", "--data.test_limit", "16"),
    *("--trainer.val_check_interval", "2", "--trainer.max_steps", "40"),
]
ADAMW = ("--optimizer", "AdamW", "--optimizer.lr")
FLAT = [*STOP, "--data.task", "toy_task.FirstLetter", "--data.batch_size", "4", *ADAMW, "1e-6"]  # learns nothing
KL = ["--model.loss.kl_coef", "1e-6"]  # so that it is measured at every step


def fit(folder, *more):
    """The report, the warnings, and the steps that were done; None where there was nothing to do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([*FIT, "--run_dir", str(folder), *more]) == 0
    last = folder / "checkpoints" / "last.ckpt"
    steps = read_checkpoint(last)["global_step"] if last.exists() else None
    return json.loads((folder / "report.json").read_text()), [str(w.message) for w in caught], steps


def signs(report):
    return [note for note in report["details"].get("notes", ()) if note.startswith("TRAINING COLLAPSED")]


def test_a_rate_that_is_too_high_collapses_says_so_and_is_stopped(tmp_path, capsys):
    run = [*STOP, "--data.task", "tiny_math", *ADAMW, "0.3", "--trainer.val_check_interval", "8", *KL]
    run += ["--data.batch_size", "8", "--data.validation_limit", "4", "--data.test_limit", "4"]
    report, said, steps = fit(tmp_path / "run", *run)
    (line,) = signs(report)
    assert "nats a token" in line and "run to the limit" in line and "lower model.optimizer.lr" in line
    stopped = "stopped early, after 8 steps; the expert is of step 8"
    assert steps == 8 and stopped in report["details"]["notes"], "at the validation after the first sign"
    printed = capsys.readouterr().out
    assert line in printed and stopped in printed
    assert [sum(words in w for w in said) for words in ("the KL to the base is", "run to the limit")] == [1, 1]
    assert max(v for _, v in read_scalars(tmp_path / "run", ("train/collapsed",))["train/collapsed"]) == 2
    assert main(["report", str(tmp_path / "run")]) == 0
    assert line in capsys.readouterr().out


@pytest.mark.slow
def test_certain_of_wrong_answers(tmp_path):
    lora = ["--model.adapter", "{peft_type: LORA, r: 8, target_modules: all-linear}", *ADAMW, "0.02"]
    run = ["--data.task", "toy_task.MostlyB", "--data.batch_size", "32"]
    report, said, _ = fit(tmp_path / "run", *run, "--trainer.val_check_interval", "20", *lora)
    assert "the entropy fell from" in signs(report)[0]
    assert sum("the entropy fell from" in words for words in said) == 1


def test_a_healthy_run_is_silent(tmp_path, capsys):
    more = [*STOP, "--data.task", "tiny_dispatch", "--trainer.max_steps", "8", "--trainer.val_check_interval", "8"]
    more += ["--data.validation_limit", "4", "--data.test_limit", "4"]
    report, said, steps = fit(tmp_path / "run", *more, *KL)
    assert not signs(report) and not any("model.optimizer.lr" in words for words in said) and steps == 8
    assert {v for _, v in read_scalars(tmp_path / "run", ("train/collapsed",))["train/collapsed"]} == {0.0}
    assert "COLLAPSED" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    return folder, *fit(folder, *FLAT)


def test_a_run_that_no_longer_improves_stops_and_is_tested(stopped):
    folder, report, _, steps = stopped
    assert steps == 2 + 5 * 2, "the first validation, and five without a better one"
    assert report["n"] == 16
    config = json.loads((folder / "expert" / "adapter_config.json").read_text())
    assert config["step"] == 2, "the best expert is kept, not the last"


@pytest.mark.slow
def test_a_run_cut_before_the_stop_stops_at_the_same_step(stopped, tmp_path):
    folder, report, _, steps = stopped
    fit(tmp_path / "cut", *FLAT, "--trainer.max_steps", "7")
    again, _, end = fit(tmp_path / "again", *FLAT, "--ckpt_path", str(tmp_path / "cut" / "checkpoints" / "last.ckpt"))
    assert end == steps and again["result"] == report["result"]
    # A run that was stopped and is resumed has nothing to do but the test.
    over, said, end = fit(tmp_path / "over", *FLAT, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    assert end is None and over["result"] == report["result"]
    assert any("leave EarlyStopping out of trainer.callbacks" in words for words in said)
    ours, theirs = (load_file(f / "expert" / "adapter_model.safetensors") for f in (folder, tmp_path / "over"))
    assert all(ours[k].equal(theirs[k]) for k in ours)
