"""The paper's experiment on TextVQA as it is shipped, on a small model and rows in the Hub's schema."""

from __future__ import annotations

import json
from pathlib import Path

from vision_bases import make_vision
from vqa_rows import write_textvqa

from transformer2.cli import main


def test_llava8b_textvqa_runs_on_a_small_base(tmp_path: Path) -> None:
    base, data, run = make_vision(tmp_path / "base", layers=4), write_textvqa(tmp_path / "data" / "textvqa"), tmp_path
    small = ["--data.batch_size", "8", "--data.validation_limit", "4", "--trainer.max_steps", "2"]
    small += ["--trainer.val_check_interval", "1", "--model.dtype", "float32", "--trainer.accelerator", "cpu"]
    layers = ["--model.adapter.layers_to_transform", "[0, 2]", "--no_preflight"]
    where = ["--model.base", str(base), "--data.data_dir", str(data), "--run_dir", str(run / "run"), "--quiet"]
    assert main(["fit", "--config", "conf/llava8b_textvqa.yaml", *small, *layers, *where]) == 0
    report = json.loads((run / "run" / "report.json").read_text())
    # The official test split has no answers: what is scored is the official validation split.
    assert report["n"] == 20 and set(report["controls"]) == {"without the picture", "most frequent answer"}
    assert report["controls"]["most frequent answer"]["accuracy"] == 1  # all signs of these rows say "stop"
    adapter = json.loads((run / "run" / "expert" / "adapter_config.json").read_text())
    assert adapter["layers_to_transform"] == [0, 2]
    assert (run / "run" / "figures" / "pictures.png").is_file()
