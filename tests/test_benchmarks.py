"""Every benchmark runs, at a toy size, and hands back well-formed rows. Nothing here is timed."""

import importlib
import json
import math
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    "layer",
    "train_step",
    "decomposition",
    "kl",
    "zrows",
    "share",
    "startup",
    "verify_math",
    "sandbox",
    "quantised",
)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", NAMES)
def test_rows(benchmark, name):
    rows = benchmark(name).measure(toy=True)
    assert rows and len({row.what for row in rows}) == len(rows)
    assert any(row.target for row in rows)
    for row in rows:
        assert row.measured is None or math.isfinite(row.measured)
        assert row.note if row.measured is None else isinstance(row.measured, float)
        assert isinstance(row.holds, bool) or row.measured is None or not row.target


def test_a_target_is_judged_by_its_side(benchmark):
    row = benchmark("_common").Row
    assert row("a", 1.0, at_most=1.05).holds and not row("a", 1.1, at_most=1.05).holds
    assert row("a", 3.0, at_least=1.3).holds and not row("a", 1.0, at_least=1.3).holds
    assert row("a", 1.0).holds is None and row("a", None, at_most=1.0).holds is None


def test_runs_of_a_month_share_a_file(benchmark, tmp_path, monkeypatch):
    run, row = benchmark("run"), benchmark("_common").Row
    monkeypatch.setattr(run, "HERE", tmp_path)
    run.keep("kl", [row("peak", 0.11, at_most=0.2)])
    run.keep("layer", [row("delta", 2.0, at_most=1.75, note="8 x 512 tokens")])
    (path,) = (tmp_path / "results").glob("*.json")
    assert json.loads(path.read_text())["benchmarks"].keys() == {"kl", "layer"}
    text = path.with_suffix(".md").read_text()
    assert "| peak | 0.11 x | <= 0.2 x | yes |" in text and "| delta | 2 x | <= 1.75 x | NO | 8 x 512 tokens |" in text


def test_memory_is_counted(benchmark):
    common, torch = benchmark("_common"), pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.randn(64, 64))
    x = torch.randn(32, 64)
    assert common.saved_bytes(lambda: (x @ weight).square().sum(), [weight]) == 2 * 32 * 64 * 4  # x and x W
    assert 2 * 2**20 <= common.peak_bytes(lambda: (torch.zeros(2**18) + 1).sum()) < 2.1 * 2**20
