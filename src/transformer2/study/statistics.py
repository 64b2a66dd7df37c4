"""Means and intervals over seeds, and verdicts on hypotheses; all in points of 100.

    mean ± s.e.    of the seeds' accuracies, s / sqrt(k); with one seed the sampling error of its questions
    interval       95 %, of the k differences between two runs of the same seed: mean ± t(0.975, k - 1) s / sqrt(k)
    p              two-sided, of the same t

Why a t over seeds, and not the p-values of the reports combined (Stouffer, Fisher): those assume independent tests, but
all seeds answer the same questions, and with hundreds of questions each of them is tiny however much seeds disagree.
What an interval over seeds leaves out is the choice of questions: n stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from statistics import fmean, stdev
from typing import Any, Literal

MARGIN = 2.0  # points that "at least as good" may be worse by
ENOUGH = 5  # seeds that a verdict takes
CONFIDENCE = 0.95
Verdict = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy.

    Attributes:
        mean: In points.
        se: Standard error over seeds; of one seed, of its questions.
        n: Questions of a seed (the fewest).
        seeds: How many.
    """

    mean: float
    se: float
    n: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.se:.1f}" + (" (of questions)" if self.seeds == 1 else "")


def estimate(scores: Iterable[Mapping[str, Any]]) -> Estimate | None:
    """Mean over seeds.

    Args:
        scores: Of each seed: `accuracy` and `se` as shares, `n`; those of no question are left out.

    Returns:
        None where nothing was scored.
    """
    scored = [score for score in scores if score["n"]]
    if not scored:
        return None
    values = [100 * score["accuracy"] for score in scored]
    se = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 100 * scored[0]["se"]
    return Estimate(fmean(values), se, min(score["n"] for score in scored), len(values))


@dataclass(frozen=True)
class Difference:
    """A mean difference, paired by seed.

    Attributes:
        mean: In points.
        low: Lower end of the interval; -inf with one seed.
        high: Upper end; inf with one seed.
        p: Two-sided paired t over seeds; None with one seed, or where all seeds differ by the same.
        seeds: How many.
    """

    mean: float
    low: float
    high: float
    p: float | None
    seeds: int

    def __str__(self) -> str:
        return self.beside(math.nan)

    def beside(self, bound: float) -> str:
        """With a digit more for each that would round an end of the interval to the bound that it is judged by."""
        digits = next(d for d in range(1, 9) if d == 8 or bound not in (round(self.low, d), round(self.high, d)))
        mean, low, high = (f"{value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean + ("" if self.seeds == 1 else f" [{low}, {high}]")


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """`first` - `second` over the seeds that both have.

    Args:
        first: Seed -> points.
        second: Seed -> points.

    Returns:
        None without a common seed.
    """
    values = [first[seed] - second[seed] for seed in first if seed in second]
    return mean_difference(values) if values else None


def mean_difference(values: Sequence[float]) -> Difference:
    """The mean of one difference a seed, with its interval."""
    mean, k = fmean(values), len(values)
    if k == 1:
        return Difference(mean, -math.inf, math.inf, None, 1)
    se = stdev(values) / math.sqrt(k)
    if se < 1e-9:
        return Difference(mean, mean, mean, None, k)
    reach = t_quantile(CONFIDENCE, k - 1) * se
    return Difference(mean, mean - reach, mean + reach, t_p_value(mean / se, k - 1), k)


def judged(found: Difference | None, bound: float) -> Verdict:
    """Verdict on "the difference is above the bound": 0, or for "at least as good" -`MARGIN` (non-inferiority)."""
    # Without spread the seeds changed nothing, and an interval of no width would decide everything.
    if found is None or found.seeds < ENOUGH or found.low == found.high:
        return "not decided"
    return "holds" if found.low > bound else "does not hold" if found.high < bound else "not decided"


def p_against(found: Difference, bound: float) -> float:
    """Two-sided p of a difference that is judged, against the bound: below 1 - `CONFIDENCE` where it is decided."""
    se = (found.high - found.low) / 2 / t_quantile(CONFIDENCE, found.seeds - 1)
    return t_p_value((found.mean - bound) / se, found.seeds - 1)


def holm(ps: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of several hypotheses are rejected with that probability of a single false rejection (Holm, 1979)."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    passed = takewhile(lambda at: ps[order[at]] <= level / (len(ps) - at), range(len(ps)))
    rejected = {order[at] for at in passed}
    return [i in rejected for i in range(len(ps))]


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdict on hypotheses that must hold together; nothing to judge is not decided."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts and all(verdict == "holds" for verdict in verdicts) else "not decided"


@lru_cache
def t_quantile(confidence: float, degrees: int) -> float:
    """The t that |T| stays below with that probability, by bisection of Student's distribution."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_p_value(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def t_p_value(t: float, degrees: int) -> float:
    """Two-sided p-value of Student's t: the regularised incomplete beta I_x(d / 2, 1 / 2) at x = d / (d + t^2)."""
    import mpmath

    return float(mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True))
