r"""Scores; as torchmetrics where ranks add up, with sums in the states, to what one process counts.

Accuracy    a = mean of credits (1 or 0; soft scores in between),  standard error sqrt(variance / n), which for 1 and 0
            is sqrt(a (1 - a) / n)
pass@k      E over problems of 1 - C(n - c, k) / C(n, k): the unbiased estimate from n samples, c of them right
            (Chen et al. 2021, arXiv 2107.03374, equation 1); its standard error is over problems
Confusion   label x predicted label, with a column for answers that are not a label
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from math import comb
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from transformer2.types import Score

__all__ = ["UNPARSED", "Accuracy", "Confusion", "mean_pass_at_k", "pass_at_k"]

UNPARSED = "no category"


class Accuracy(Metric):
    """Mean credit of answers (`Verdict.credit`), with n and standard error."""

    full_state_update = False
    credit: Tensor
    within: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("credit", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("within", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, credits: Sequence[float]) -> None:
        """Count answers."""
        self.credit += sum(credits)
        self.within += sum(c * (1 - c) for c in credits)  # 0 where all are right or wrong
        self.n += len(credits)

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, `accuracy_se` and `n`; NaN where n is 0."""
        accuracy = self.credit / self.n
        variance = (accuracy * (1 - accuracy) - self.within / self.n).clamp(min=0)
        return {"accuracy": accuracy, "accuracy_se": (variance / self.n).sqrt(), "n": self.n}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold at least one of the c right ones.

    Raises:
        ValueError: k exceeds n: there is no unbiased estimate.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples of each problem, not {n}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> dict[str, float]:
    """`pass`, `pass_se` and `n` over problems; with one sample and k = 1 they are Accuracy's.

    Args:
        counts: Of each problem, the number of right samples and of all; at least one problem.
        k: How many samples one may try.
    """
    values = [pass_at_k(n, c, k) for c, n in counts]
    return {"pass": fmean(values), "pass_se": pstdev(values) / math.sqrt(len(values)), "n": len(values)}


class Confusion(Metric):
    """How often each label was predicted for each, and the accuracies that follow.

    Args:
        labels: Names of the labels. Any other prediction counts as UNPARSED.
        options: See torchmetrics; `sync_on_compute=False` for rows that every rank has.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, labels: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.add_state("counts", torch.zeros(len(labels), len(labels) + 1, dtype=torch.long), dist_reduce_fx="sum")
        self.labels = tuple(labels)

    def update(self, pairs: Iterable[tuple[str, str | None]]) -> None:
        """Count (label, prediction); None is not a label."""
        for label, predicted in pairs:
            column = self.labels.index(predicted) if predicted in self.labels else len(self.labels)
            self.counts[self.labels.index(label), column] += 1

    def compute(self) -> Tensor:
        """The counts over all ranks: label x (label or UNPARSED)."""
        return self.counts

    def table(self) -> dict[str, dict[str, int]]:
        """Label -> predicted label -> how many; zeros are left out."""
        columns = (*self.labels, UNPARSED)
        rows = zip(self.labels, self.compute().tolist(), strict=True)
        return {label: {name: count for name, count in zip(columns, row, strict=True) if count} for label, row in rows}

    def scores(self) -> dict[str, dict[str, Any]]:
        """`with other`, `without other` and one score a label, as {accuracy, se, n}; those of no row are left out.

        The label `other` stands for none of the others.
        """
        by_label = {label: (row.get(label, 0), sum(row.values())) for label, row in self.table().items()}
        named = [counts for label, counts in by_label.items() if label != "other"]
        groups = {"with other": list(by_label.values()), "without other": named}
        groups |= {label: [counts] for label, counts in by_label.items()}
        scores = {}
        for name, counts in groups.items():
            correct, n = (sum(column) for column in zip(*counts, strict=True))
            if n:
                scores[name] = vars(Score.of([True] * correct + [False] * (n - correct)))
        return scores
