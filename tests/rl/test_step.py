"""A step is the sum of its parts, whichever way it was taken apart."""

import math
from dataclasses import replace

import torch

from transformer2.rl.step import Step


def step(rows: float, **sums: float) -> Step:
    names = ("loss", "finished", "tokens", "entropy", "kl", "mismatch", "capped")
    return Step(rows=rows, gradient_Z=torch.full((3,), rows), **{name: sums.get(name, rows) for name in names})


def test_parts_add_up_and_so_do_ranks():
    whole = step(1) + step(2) + step(3)
    assert whole.rows == whole.loss == 6 and torch.equal(whole.gradient_Z, torch.full((3,), 6.0))
    ranks = whole.over_ranks(lambda tensor: 2 * tensor, lambda tensor: torch.stack([tensor, tensor]))
    assert ranks.kl == 12 and torch.equal(ranks.gradient_Z, torch.full((3,), 12.0))


def test_scores_are_kept_row_by_row():
    one, two = (replace(step(n), scores_BZ=torch.full((n, 3), float(n))) for n in (1, 2))
    whole = one + two
    assert torch.equal(whole.scores_BZ, torch.cat([one.scores_BZ, two.scores_BZ]))
    ranks = whole.over_ranks(lambda tensor: tensor, lambda tensor: torch.stack([tensor, 2 * tensor]))
    assert torch.equal(ranks.scores_BZ, torch.cat([whole.scores_BZ, 2 * whole.scores_BZ]))


def test_what_one_part_did_not_measure_is_unknown_of_the_whole():
    whole = step(1) + step(1, kl=math.nan, tokens=0)
    assert math.isnan(whole.kl) and whole.per_token(whole.entropy) == 2
    assert math.isnan(step(1, tokens=0).per_token(5.0))
