"""The classification expert of SmolLM2: six runs of a quarter of an hour, SVF better than the base with every seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from transformer2.cli import main
from transformer2.study.results import read_study

pytestmark = pytest.mark.real


def test_the_row_of_the_classification_expert(real_data: Path, tmp_path: Path) -> None:
    """SVF as conf/smollm2_dispatch.yaml ships it, and LoRA beside it, three seeds each (conf/paper/smollm2.yaml)."""
    words = ["study", "conf/paper/smollm2.yaml", "--data.data_dir", str(real_data), "--run_dir", str(tmp_path)]
    assert main([*words, "--jobs", "2"]) == 0  # without --quiet: the bar is what is seen of half an hour
    study = read_study(tmp_path / "smollm2-smollm2")
    for method in ("svf", "lora"):
        reports = study.groups[f"{method}-dispatch"].reports
        assert list(reports) == [0, 1, 2]
        for seed, report in reports.items():
            base, result, n = report["base"], report["result"], report["n"]
            print(f"{method}, seed {seed}: base {base['accuracy']:.3f}, expert {result['accuracy']:.3f}")
            assert n >= 300 and base["n"] == result["n"] == n
            if method == "svf":
                assert result["accuracy"] > base["accuracy"] and report["paired_p"] < 1e-6
