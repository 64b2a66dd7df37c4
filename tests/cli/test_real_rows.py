"""`transformer2 test` over real rows with a random-weight Llama: prompts, answers, verdicts and files, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_experts import make_experts

from transformer2.cli import main


@pytest.mark.parametrize("task", ["humaneval", "math", "arc_challenge", "arc_easy", "mbpp"])
def test_a_random_model_is_scored_and_is_wrong(
    task: str, tmp_path: Path, llama_folder: Path, some_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = main(
        [
            "test", "--config", "conf/llama8b_gsm8k.yaml", "--run_dir", str(run), "--quiet",
            "--model.base", str(llama_folder), "--model.dtype", "float32", "--model.sampling.max_new_tokens", "12",
            "--data.task", task, "--data.data_dir", str(some_rows), "--data.test_limit", "8",
            "--data.drop_long_prompts", "true", "--trainer.accelerator", "cpu",
        ]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    report = json.loads((run / "report.json").read_text())
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert report["task"] == task and report["n"] == len(records) and 0 < report["n"] <= 8
    assert report["base"]["accuracy"] == report["result"]["accuracy"] == 0
    assert all(r["id"].startswith(f"{task}/test/") and not r["correct"] and r["reason"] for r in records)
    if task in ("humaneval", "mbpp"):
        assert report["sandbox"].startswith(("full", "no-namespaces"))
    else:
        assert report["sandbox"] is None
    assert f"{task}   test split, n = {report['n']}" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["humaneval", "math", "arc_challenge"])
def test_a_shipped_adaptation_config_runs_whole(
    task: str, tmp_path: Path, llama_folder: Path, some_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dispatch by likelihood, its prompt made of the experts; only model and experts are not the config's."""
    run, experts = tmp_path / "run", make_experts(tmp_path, str(llama_folder))
    protocol = "paper" if task == "math" else "clean"  # of MATH there are no train rows here
    code = main(
        [
            "adapt", "--config", f"conf/adapt_llama8b_{task}.yaml", "--run_dir", str(run), "--quiet",
            "--strategy", "scores", "--adapt.classifier", experts[0], "--adapt.experts", json.dumps(experts),
            "--model.base", str(llama_folder), "--model.dtype", "float32", "--model.sampling.max_new_tokens", "6",
            "--model.adapter", "{peft_type: SVF, target_modules: all-linear}", "--data.few_shot", "2",
            "--data.protocol", protocol, "--data.data_dir", str(some_rows), "--data.test_limit", "4",
            "--data.drop_long_prompts", "true", "--trainer.accelerator", "cpu",
        ]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    report = json.loads((run / "report.json").read_text())
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert (report["task"], report["protocol"]) == (task, protocol) and report["n"] == len(records) == 4
    assert len(report["controls"]) == 5
    assert {r["choice"] for r in records} <= {"math", "code", "reasoning", "other"}
    assert not {r["id"] for r in records} & set(report["details"]["few_shot"])
