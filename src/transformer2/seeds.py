"""Seeds that follow from one seed and a position, so that a resumed run draws what the uncut one would have drawn."""

from __future__ import annotations

MANY = 1_000_003  # a prime beyond the steps, epochs and generations of a run: streams of seeds 0, 1, 2 do not meet


def seed_at(seed: int, position: int) -> int:
    """The seed of a position (a step, an epoch, a generation, a row) under a run's seed."""
    return seed * MANY + position


def rollout_seed(seed: int, step: int) -> int:
    """The seed of a step's completions; those of neighbouring steps are far apart, so that rows may be counted on."""
    return seed_at(seed, step) * 4096
