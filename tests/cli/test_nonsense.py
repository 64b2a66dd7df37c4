"""A config that no run can follow: exit code 2, one line with the remedy, nothing left behind."""

import pytest
from nonsense import cases, write

from transformer2.cli import main

SMALL = """\
data: {task: tiny_math, batch_size: 2, validation_limit: 2, test_limit: 2}
trainer: {accelerator: cpu, max_steps: 1, val_check_interval: 1}
"""
ADAPT = """\
data: {task: tiny_code_math, few_shot: 2, test_limit: 2}
adapt: {population: 2, generations: 1, controls: false}
trainer: {accelerator: cpu}
"""


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder and says what is wrong with how it ended; empty when it was refused well."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRANSFORMER2_CACHE", str(cache))

    def refused(command, words, content):
        (tmp_path / "small.yaml").write_text(ADAPT if command == "adapt" else SMALL)
        write(tmp_path, content)
        first = [] if command in ("decompose", "experts", "report", "sandbox") else ["--config", "small.yaml"]
        before = sorted(p for p in tmp_path.rglob("*"))
        capfd.readouterr()
        try:
            code = main([command, *first, *words])
        except Exception as e:
            return f"{type(e).__name__}: {e}"
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
        left = [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*")) if p not in before]
        if code != 2:
            return f"exit code {code}"
        if len(lines) != 1 or not lines[0].startswith("transformer2: ") or len(lines[0]) > 500:
            return f"{len(lines)} lines: {lines}"
        return f"left {left}" if left else ""

    return refused


def _all(refused, command, chosen):
    ends = {f"{command} {name}": refused(command, words, content) for name, words, content in chosen}
    assert not any(ends.values()), "\n".join(f"{name}  ->  {end[:300]}" for name, end in ends.items() if end)


@pytest.mark.parametrize(("command", "count"), [("fit", 60), ("adapt", 30), ("plan", 20)])
def test_a_sample(refused, command, count):
    _all(refused, command, cases(command, seed=7, count=count))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "validate", "test", "adapt", "plan"])
def test_every_one(refused, command):
    chosen = cases(command, seed=0)
    assert len(chosen) >= 300
    _all(refused, command, chosen)
