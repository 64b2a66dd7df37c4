"""Every benchmark runs, at a toy size, and hands back well-formed rows. Nothing here is timed."""

import importlib
import json
import math
import os
import subprocess
import sys
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
    "vision",
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
    results, machine = benchmark("_results"), benchmark("_common").machine()
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    results.keep("kl", [results.Row("peak", 0.11, at_most=0.2)], machine)
    results.keep("layer", [results.Row("delta", 2.0, at_most=1.75, note="8 x 512 tokens")], machine)
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


def gpu_check(*arguments):
    env = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent / "src"), "OMP_NUM_THREADS": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_gpu_rows_on_a_cpu():
    kept = sorted((BENCHMARKS / "results").iterdir())
    done = gpu_check("--toy")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    figures = dict(line.strip("| ").split(" | ")[:2] for line in lines[2:])
    assert len(figures) == len(lines) - 2 > 40
    unmeasured = [what for what, figure in figures.items() if figure == "-"]
    assert all("NF4" in what for what in unmeasured) and "not reached" not in done.stdout
    assert [figure for what, figure in figures.items() if "logits that differ" in what] == ["0", "0"]
    assert sorted((BENCHMARKS / "results").iterdir()) == kept


def test_without_a_gpu():
    done = gpu_check()
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and "CUDA" in done.stderr


PARTS = {
    "works": "yield 'a', 1.5, 'fine'",
    "fails": "yield 'a', 1.0, 'first'; raise RuntimeError('two\\nlines')",
    "hangs": "yield 'a', 2.0, 'first'; time.sleep(600)",
    "dies": "os._exit(3); yield",
    "last": "yield 'a', 3.0, 'fine'; yield 'b', None, 'not measured: so it is'",
}


@pytest.mark.slow
def test_a_part_that_fails_takes_nothing_with_it(benchmark, tmp_path, monkeypatch):
    check, results = benchmark("gpu_check"), benchmark("_results")
    (tmp_path / "parts").mkdir()
    for name, body in PARTS.items():
        rows = "{key: Row(f'{__name__} {key}', None) for key in 'ab'}"
        text = f"import os, time\nfrom _results import Row\ndef planned(toy): return {rows}\ndef measure(toy): {body}\n"
        (tmp_path / "parts" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    # On a busy machine a process needs long to import torch: `hangs` has what the parts before it leave.
    run = check.Check({"works": 20, "fails": 0, "hangs": 0, "dies": 40, "last": 60}, toy=True, folder="parts")
    run.run()
    assert run.rows["works"]["a"].measured == 1.5 and run.rows["works"]["b"].note == "not reached"
    assert run.rows["fails"]["a"].measured == 1.0 and run.errors["fails"] == "RuntimeError: two lines"
    assert run.rows["hangs"]["a"].measured == 2.0 and run.rows["hangs"]["b"].note == f"not reached: {check.LATE}"
    assert run.errors["dies"] == "its process died" and run.rows["dies"]["a"].measured is None
    assert run.rows["last"]["a"].measured == 3.0 and run.rows["last"]["b"].note == "not measured: so it is"
    assert not (tmp_path / "results").exists()

    run.toy, run.machine = False, run.machine | {"kind": "some-gpu"}
    run._keep("last")
    run._keep("fails")
    (path,) = (tmp_path / "results").glob("some-gpu_*.json")
    assert json.loads(path.read_text())["benchmarks"].keys() == {"gpu_check: last", "gpu_check: fails"}
    assert "gpu_check.py" in path.with_suffix(".md").read_text()
