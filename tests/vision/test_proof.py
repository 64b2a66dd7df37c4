"""What pictures promise, on three seeds: an expert that reads, clearly above what is scored blind; what cem makes of it
and an expert of text alone on questions that need both, beside every control.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transformer2.cli import main
from transformer2.experts import read_expert

SEEDS = (0, 1, 2)
TWIN = ["--model.base", "tiny_vision", "--quiet"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of both experts, a seed each."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in SEEDS:
        for name in ("textvqa", "reasoning"):
            where = ["--seed_everything", str(seed), "--run_dir", str(folder / f"{name}{seed}")]
            assert main(["fit", "--config", f"conf/tiny_{name}.yaml", *TWIN, *where]) == 0
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_the_expert_reads(runs: Path, seed: int) -> None:
    report = json.loads((runs / f"textvqa{seed}" / "report.json").read_text())
    base, result, blind = report["base"], report["result"], report["details"]["blind"]
    controls = {name: f"{100 * c['accuracy']:.1f}" for name, c in report["controls"].items()}
    print(f"\nseed {seed}: {100 * base['accuracy']:.1f} -> {100 * result['accuracy']:.1f} %, {controls}")
    assert result["accuracy"] > base["accuracy"] and report["paired_p"] < 0.01
    assert set(blind) == {"without the picture", "most frequent answer"}
    assert all(control["points"] > 0 and control["p"] < 0.01 for control in blind.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_cem_beside_every_control(runs: Path, seed: int, tmp_path: Path) -> None:
    experts = [str(runs / f"{name}{seed}" / "expert") for name in ("textvqa", "reasoning")]
    assert all(read_expert(path).base == "tiny_vision" for path in experts)
    command = ["adapt", "--config", "conf/adapt_tiny_okvqa.yaml", "--strategy", "cem", "--quiet"]
    chosen = ["--adapt.experts", f"[{', '.join(experts)}]", "--adapt.seed", str(seed)]
    assert main([*command, *chosen, "--run_dir", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    scores = {name: f"{100 * c['accuracy']:.1f}" for name, c in report["controls"].items()}
    cem = report["result"]["accuracy"]
    print(f"\nseed {seed}: base {100 * report['base']['accuracy']:.1f}, cem {100 * cem:.1f}, {scores}")
    assert report["n"] == 512 and cem > report["controls"]["without the picture"]["accuracy"] + 0.1
    assert cem > report["base"]["accuracy"] and report["paired_p"] < 0.01
