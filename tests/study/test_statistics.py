import math

import pytest
from studies import score

from transformer2.study.statistics import (
    all_of,
    at_least,
    difference,
    estimate,
    greater,
    mean_difference,
    t_p_value,
    t_quantile,
)


def test_a_mean_over_seeds_has_the_error_of_seeds_and_one_seed_that_of_its_questions() -> None:
    several = estimate([score(0.6), score(0.7), score(0.8)])
    assert several is not None
    assert (several.mean, several.seeds, several.n) == (pytest.approx(70), 3, 100)
    assert several.se == pytest.approx(10 / math.sqrt(3))
    one = estimate([score(0.5)])
    assert one is not None and one.se == pytest.approx(5) and str(one) == "50.0 ± 5.0 (of questions)"
    assert estimate([]) is None and estimate([{"accuracy": None, "se": None, "n": 0}]) is None


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (29, 2.04523)])
def test_quantiles_of_the_t_table(degrees: int, t: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(t, abs=1e-4)
    assert t_p_value(t, degrees) == pytest.approx(0.05, abs=1e-5)


def test_differences_are_paired_by_seed() -> None:
    # 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), s.e. = sqrt(0.5) = 0.7071, t(4) = 2.7764
    found = difference({s: 50.0 + s + 1 for s in range(5)}, {**{s: 50.0 for s in range(5)}, 9: 0.0})
    assert found is not None and found.seeds == 5 and found.mean == pytest.approx(3)
    assert (found.low, found.high) == (pytest.approx(3 - 1.96324, abs=1e-4), pytest.approx(3 + 1.96324, abs=1e-4))
    assert found.p == pytest.approx(0.0132, abs=1e-4) and str(found) == "+3.0 [+1.0, +5.0]"
    assert difference({0: 1.0}, {1: 1.0}) is None
    one = difference({0: 3.0}, {0: 1.0})
    assert one is not None and str(one) == "+2.0" and one.p is None


def test_verdicts() -> None:
    above, across, below = ([m + d for d in (-1, -0.5, 0, 0.5, 1)] for m in (3, 0.5, -4))
    for values, strict, margin in ((above, "holds", "holds"), (below, "does not hold", "does not hold")):
        assert (greater(mean_difference(values)), at_least(mean_difference(values))) == (strict, margin)
    assert greater(mean_difference(across)) == "not decided"
    assert at_least(mean_difference(across)) == "holds"  # its lower end is above -2
    assert at_least(mean_difference([v - 2.5 for v in across])) == "not decided"
    assert greater(mean_difference(above[:4])) == "not decided"  # too few seeds
    assert greater(mean_difference([3.0] * 5)) == "not decided"  # seeds that change nothing
    assert greater(None) == "not decided"
    assert all_of(["holds", "not decided"]) == all_of([]) == "not decided"
    assert all_of(["holds", "does not hold", "not decided"]) == "does not hold" and all_of(["holds"]) == "holds"
