"""Seeds that follow from one seed and a position, so that a resumed run draws what the uncut one would have drawn."""

from __future__ import annotations

MANY = 1_000_003  # a prime beyond the steps, epochs and generations of a run: streams of seeds 0, 1, 2 do not meet


def seed_at(seed: int, position: int) -> int:
    """The seed of a position (a step, an epoch, a generation, a row) under a run's seed."""
    return seed * MANY + position


def row_seed(seed: int, position: int) -> int:
    """The seed of one of several prompts that are given one seed: the first has it, equal ones draw differently."""
    return (seed + MANY * position) % 2**63


def rollout_seed(seed: int, step: int) -> int:
    """The seed of a step's completions; those of neighbouring steps are far apart, so that rows may be counted on."""
    return seed_at(seed, step) * 4096
