"""The classification expert of conf/smollm2_dispatch.yaml: trained for real, better than the base with every seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transformer2.cli import main

pytestmark = pytest.mark.real


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_what_the_base_cannot(seed: int, real_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["fit", "--config", "conf/smollm2_dispatch.yaml", "--data.data_dir", str(real_data), "--quiet"]
    assert main([*words, "--seed_everything", str(seed), "--run_dir", str(run)]) == 0
    report = json.loads((run / "report.json").read_text())
    base, result = report["base"], report["result"]
    print(f"seed {seed}: base {base['accuracy']:.3f}, expert {result['accuracy']:.3f} ± {result['se']:.3f}")
    assert report["n"] >= 300 and base["n"] == result["n"] == report["n"]
    assert result["accuracy"] > base["accuracy"] and report["paired_p"] < 1e-6
