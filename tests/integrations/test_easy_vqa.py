"""easy-VQA's real pictures and questions from end to end; a small random model sees nothing, as its report says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from vision_bases import make_vision

from transformer2.cli import main

pytestmark = pytest.mark.integration


@pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="needs easy-vqa")
def test_fit_and_report(tmp_path: Path) -> None:
    small = ["--data.batch_size", "16", "--data.validation_limit", "16", "--data.test_limit", "400"]
    where = ["--model.base", str(make_vision(tmp_path / "base")), "--run_dir", str(tmp_path / "run"), "--quiet"]
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--data.task", "easy_vqa"]
    assert main(["fit", "--config", "conf/tiny.yaml", *small, *steps, *where]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["n"] == 400
    # Two in three questions are answered by what the training rows say most often (VISION: .670).
    assert 0.55 < report["controls"]["most frequent answer"]["accuracy"] < 0.8
    assert report["result"]["accuracy"] < report["controls"]["most frequent answer"]["accuracy"]
    assert any("is not above the most frequent training answer" in note for note in report["details"]["notes"])
