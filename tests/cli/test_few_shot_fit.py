"""`fit --data.few_shot K`: the rows that an adaptation would draw are trained on, the others tested."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformer2.cli import main
from transformer2.data import ExpertDataModule, FewShotDataModule, UnseenTaskDataModule
from transformer2.data.modules import mark_of
from transformer2.errors import DataError

SHORT = ["--trainer.max_steps", "3", "--data.test_limit", "12", "--data.few_shot", "6", "--quiet"]
FIT = ["fit", "--config", "conf/tiny.yaml", "--data.task", "tiny_reasoning_hard", *SHORT, "--trainer.logger", "false"]
NEXT = ["--model.objective", "next_token", "--optimizer", "AdamW", "--optimizer.lr", "1e-2"]


@pytest.mark.parametrize("protocol", ["clean", "paper"])
@pytest.mark.parametrize("task", ["tiny_code_math", "tiny_math"])
def test_the_rows_are_those_of_an_adaptation(task, protocol):
    options = {"few_shot": 5, "protocol": protocol, "seed": 3, "test_limit": 20}
    adapt, fit = UnseenTaskDataModule(task, **options), FewShotDataModule(task, **options, objective="next_token")
    adapt.setup("predict")
    fit.setup("fit")
    (batch,) = fit.train_dataloader()
    assert {e.id for e in batch.examples} == {e.id for e in adapt.shots().examples} and len(batch) == 5
    assert len(batch.solutions) == 5 and list(fit.val_dataloader()) == []
    with pytest.raises(Exception, match="not open at this stage"):
        fit.test_dataloader()
    fit.setup("test")
    assert [e.id for e in fit.scored()] == [e.id for e in adapt.scored()]
    assert fit.sizes == {"few_shot": 5, "test": 20}


def test_rows_that_an_expert_was_made_with_are_not_scored():
    options = {"task": "tiny_math_hard", "few_shot": 64, "protocol": "paper"}
    made, test, adapt = FewShotDataModule(**options), ExpertDataModule(options["task"]), UnseenTaskDataModule(**options)
    made.setup("fit")
    shots = {e.id for e in made.shots().examples}
    for data in (test, adapt):
        data.seed = 7
        data.leave_out(**made.provenance())
        with pytest.warns(UserWarning, match="64 of 512 rows of tiny_math_hard/test were shots of the expert"):
            data.setup("test")
        scored = {e.id for batch in data.test_dataloader() for e in batch.examples}
        assert not scored & shots and data.reported == data.provenance()["protocol"] == "paper"
        assert len(scored | shots | {e.id for e in data._rows.get("few_shot", ([],))[0]}) == 512
        assert {*made.provenance()["shots"]} <= {*data.provenance()["shots"]}
    again = ExpertDataModule(options["task"])
    again.leave_out([mark_of(e) for e in again.task.examples("test")])
    with pytest.raises(DataError, match="none is left to score"):
        again.setup("test")


def test_more_shots_than_a_batch_are_dealt_out(llama_folder):
    data = FewShotDataModule("toy_task.Spelt", str(llama_folder), few_shot=9, batch_size=4)
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4]


@pytest.mark.parametrize(
    ("objective", "protocol"),
    [([], "clean"), ([*NEXT, "--data.protocol", "paper", "--model.lr_scheduler", "Warmup"], "paper")],
    ids=["reinforce", "next"],
)
def test_the_last_step_is_kept_tested_and_said(objective, protocol, tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert main([*FIT, *objective, "--run_dir", str(run)]) == 0, capsys.readouterr().err
    assert "questions: 6 few_shot, 12 test" in capsys.readouterr().out
    report = json.loads((run / "report.json").read_text())
    training = report["details"]["training"]
    assert len(report["details"]["few_shot"]) == 6 and training["best_step"] == training["steps"] == 3
    assert training["best_validation"] is None and report["n"] == 12 and report["protocol"] == protocol
    assert any(
        "trained on 6 shots, without a validation: the expert is of the last step, 3" in note
        for note in report["details"]["notes"]
    )
    expert = load_file(run / "expert" / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for tensor in expert.values())
    if objective:  # cut and resumed, and scored alone, it is the same
        resumed = tmp_path / "resumed"
        cut = [word if word != "3" else "2" for word in FIT]
        assert main([*cut, *objective, "--run_dir", str(tmp_path / "cut")]) == 0
        last = ["--ckpt_path", str(tmp_path / "cut" / "checkpoints" / "last.ckpt")]
        assert main([*FIT, *objective, *last, "--run_dir", str(resumed)]) == 0
        again = load_file(resumed / "expert" / "adapter_model.safetensors")
        assert all(torch.equal(expert[key], again[key]) for key in expert)
        scored = ["test", "--expert", str(run / "expert"), "--data.test_limit", "12", "--quiet"]
        assert main([*scored, "--run_dir", str(tmp_path / "test")]) == 0
        test = json.loads((tmp_path / "test" / "report.json").read_text())  # of the same rows: the shots are left out
        assert test["result"] == report["result"] and test["protocol"] == protocol
        last[1] = str(run / "checkpoints" / "last.ckpt")  # which remembers no shots
        assert main(["test", "--config", "conf/tiny.yaml", "--data.task", "tiny_reasoning_hard", "--quiet", *last]) == 2
        assert "--ckpt_path was trained on shots (data.few_shot 6, data.protocol paper" in capsys.readouterr().err


def test_there_is_nothing_to_validate_with(capsys):
    assert main(["validate", "--config", "conf/tiny.yaml", "--data.few_shot", "6"]) == 2
    assert "data.few_shot leaves no rows to validate with" in capsys.readouterr().err
