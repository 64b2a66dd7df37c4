"""What every adaptation stands beside: the base, each expert alone, their uniform mixture, the best constant z.

A gain that a constant z or a uniform mixture has as well is no merit of the choice of alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from transformer2.adaptation.mixture import base_row, constant_rows, expert_rows

__all__ = ["CONSTANTS", "control_arms"]

CONSTANTS = (0.8, 0.9, 1.1, 1.2)


def control_arms(
    experts: Sequence[str], scores: Callable[[Tensor], tuple[list[float], list[float]]], controls: bool = True
) -> dict[str, Tensor]:
    """Name -> weights (1, K + 1); the base is always there, and first.

    Args:
        experts: Names of the K experts.
        scores: Scores and tie-breaks of weights on the few-shot rows, which choose the constant.
        controls: Whether there is anything but the base.
    """
    k = len(experts)
    arms = {"base": base_row(k)}
    if not controls:
        return arms
    singles = expert_rows(k)
    arms |= {f"expert {name}": singles[i : i + 1] for i, name in enumerate(experts)}
    arms["uniform mixture"] = singles.mean(0, keepdim=True)
    constants = constant_rows(k, CONSTANTS)
    shares, ties = scores(constants)
    best = max(range(len(CONSTANTS)), key=lambda i: (shares[i], ties[i]))
    arms[f"constant z = {CONSTANTS[best]}"] = constants[best : best + 1]
    return arms
