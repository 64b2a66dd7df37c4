"""What the README promises of the embedded models: four experts, three seeds each, by the newcomer's command."""

import json
from pathlib import Path

import pytest

from transformer2.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", ["math", "code", "reasoning", "textvqa"])
def test_an_expert_learns(task: str, seed: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--seed_everything", str(seed), "--run_dir", str(run), "--quiet"]
    assert main(["fit", "--config", f"conf/tiny_{task}.yaml", *flags]) == 0
    report = json.loads((run / "report.json").read_text())
    base, expert = report["base"]["accuracy"], report["result"]["accuracy"]
    print(f"\n{task} seed {seed}: {100 * base:.1f} -> {100 * expert:.1f} %, p = {report['paired_p']:.1e}")
    assert 0.35 <= base <= 0.65
    assert expert - base >= 0.15
    assert 0.75 <= expert <= 0.92
    assert (run / "figures" / "curve.png").stat().st_size > 10_000
