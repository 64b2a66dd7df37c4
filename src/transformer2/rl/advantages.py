"""Advantages: how much better a reward was than expected.

    none         A_b = r_b                              the paper (section 3.2)
    batch_mean   A_b = r_b - mean(r)                    default here
    rloo         A_b = r_b - mean of the other rewards of the same prompt
    group_norm   A_b = (r_b - mean_g(r)) / (std_g(r) + eps), g = the completions of one prompt

Departures: the reference code uses `none`. Any baseline that does not depend on the row's own tokens leaves the
expected gradient unchanged; `batch_mean` and `group_norm` include the row's own reward, a bias of order 1 / group size.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Baseline = Literal["none", "batch_mean", "rloo", "group_norm"]
GROUPED: tuple[Baseline, ...] = ("rloo", "group_norm")  # those that compare completions of one prompt
EPS = 1e-6  # added to the standard deviation in `group_norm`


def advantages(rewards_B: Tensor, baseline: Baseline = "batch_mean", group_size: int = 1) -> Tensor:
    """Advantages of one global batch.

    Args:
        rewards_B: fp32 (B,); NaN marks a row whose verifier failed. Completions of one prompt are neighbours.
        baseline: See the module docstring.
        group_size: Completions per prompt; B is a multiple of it.

    Returns:
        fp32 (B,): 0 in rows without a reward, so that they leave the loss unchanged.

    Raises:
        ValueError: An unknown baseline, a batch that is not a multiple of `group_size`, or a group too small for it.
    """
    if baseline in GROUPED and group_size < 2:
        raise ValueError(
            f"baseline {baseline!r} compares completions of one prompt; set num_completions >= 2, not {group_size}"
        )
    if len(rewards_B) % group_size:
        raise ValueError(f"{len(rewards_B)} rewards do not divide into groups of {group_size}")
    valid_B = ~rewards_B.isnan()
    filled_B = rewards_B.nan_to_num(0.0)
    if baseline == "none":
        return filled_B
    if baseline == "batch_mean":
        differ_B = valid_B & ~_are_equal(rewards_B)
        return (filled_B - filled_B.sum() / valid_B.sum().clamp(min=1)) * differ_B
    if baseline not in GROUPED:
        raise ValueError(f"unknown baseline {baseline!r}; use none, batch_mean, rloo or group_norm")
    filled_GN, valid_GN = filled_B.view(-1, group_size), valid_B.view(-1, group_size)
    differ_GN = valid_GN & ~_are_equal(rewards_B.view(-1, group_size))[:, None]  # a mean of equal numbers is rounded
    sum_G1, count_G1 = filled_GN.sum(-1, keepdim=True), valid_GN.sum(-1, keepdim=True)
    if baseline == "rloo":
        others_GN = (sum_G1 - filled_GN) / (count_G1 - 1).clamp(min=1)
        # A row whose companions all failed has nothing to be compared with: no signal rather than a wrong one.
        return ((filled_GN - others_GN) * (differ_GN & (count_G1 > 1))).flatten()
    centred_GN = (filled_GN - sum_G1 / count_G1.clamp(min=1)) * differ_GN
    std_G1 = (centred_GN.square().sum(-1, keepdim=True) / (count_G1 - 1).clamp(min=1)).sqrt()
    return (centred_GN / (std_G1 + EPS)).flatten()


def equal_groups(rewards_B: Tensor, group_size: int) -> float:
    """Share of groups within which all rewards are equal: with a baseline of the group they teach nothing.

    Args:
        rewards_B: fp32 (B,); NaN marks a row without a reward, which is not compared.
        group_size: Completions per prompt; B compares the whole batch.
    """
    return float(_are_equal(rewards_B.view(-1, group_size)).float().mean())


def _are_equal(rewards_GN: Tensor) -> Tensor:
    """Whether a group's rewards are all the same, bool (G,)."""
    return rewards_GN.nan_to_num(-math.inf).amax(-1) <= rewards_GN.nan_to_num(math.inf).amin(-1)
