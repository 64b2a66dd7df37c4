"""What is said of experts: their comparison, and the facts of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from expert_folders import DOWN, UP, expert

from transformer2.experts import compare_experts, read_expert, show_expert


def test_comparison_figures() -> None:
    a = expert("a", deltas={UP: torch.tensor([0.3, 0.0, 0.0]), DOWN: torch.tensor([0.0, 0.4, 0.0])})
    b = expert("b", deltas={UP: torch.tensor([0.6, 0.0, 0.0]), DOWN: torch.tensor([0.0, -0.4, 0.0])})
    zero = expert("zero", deltas={UP: torch.zeros(3), DOWN: torch.zeros(3)})
    figures = compare_experts([a, b, zero])
    assert figures.cosine["a", "b"]["mlp.up_proj"] == pytest.approx(1)
    assert figures.cosine["a", "b"]["mlp.down_proj"] == pytest.approx(-1)
    assert figures.cosine["a", "b"]["all"] == pytest.approx((0.18 - 0.16) / (0.5 * 0.52**0.5))
    assert figures.cosine["a", "zero"]["all"] != figures.cosine["a", "zero"]["all"]  # NaN
    assert figures.rms["a"]["all"] == pytest.approx((0.25 / 6) ** 0.5)
    assert figures.drift["a"] == pytest.approx(((0.09 / 2) ** 0.5, (0.16 / 2) ** 0.5, 0))
    text = str(figures)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.split("\n\n")[1].splitlines()}
    assert [float(row[0]) for name, row in rows.items() if name in figures.rms["a"]][:2] == [1.0, -1.0], text
    assert "a · b" in text and "top third" in text
    many = [replace(a, name=f"an_expert_of_a_long_name_{i}") for i in range(7)]
    assert max(map(len, str(compare_experts(many)).splitlines())) <= 100


def test_show_names_the_facts(folder: Path) -> None:
    text = show_expert(folder)
    for fact in ("math", "gsm8k", "75.0 %", "some/base", "aaaa:bbbb", "mlp.up_proj", read_expert(folder).sha256 or "?"):
        assert fact in text
