import math

import pytest
from studies import score

from transformer2.study.statistics import (
    MARGIN,
    all_of,
    difference,
    estimate,
    holm,
    judged,
    mean_difference,
    p_against,
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
        assert (judged(mean_difference(values), 0), judged(mean_difference(values), -MARGIN)) == (strict, margin)
    assert judged(mean_difference(across), 0) == "not decided"
    assert judged(mean_difference(across), -MARGIN) == "holds"  # its lower end is above -2
    assert judged(mean_difference([v - 2.5 for v in across]), -MARGIN) == "not decided"
    assert judged(mean_difference(above[:4]), 0) == "not decided"  # too few seeds
    assert judged(mean_difference([3.0] * 5), 0) == "not decided"  # seeds that change nothing
    assert judged(None, 0) == "not decided"
    assert all_of(["holds", "not decided"]) == all_of([]) == "not decided"
    assert all_of(["holds", "does not hold", "not decided"]) == "does not hold" and all_of(["holds"]) == "holds"


def test_an_end_that_rounds_to_the_bound_has_a_digit_more() -> None:
    found = mean_difference([-3.6985 + d for d in (-1.72, -0.86, 0, 0.86, 1.72)])
    assert found.beside(0) == "-3.7 [-5.4, -2.0]" and found.beside(-MARGIN) == "-3.70 [-5.39, -2.01]"


def test_p_and_the_interval_agree_and_holm_stops_at_the_first_that_fails() -> None:
    found = mean_difference([1.0, 2.0, 3.0, 4.0, 5.0])
    assert p_against(found, 0) == pytest.approx(found.p) and p_against(found, found.low) == pytest.approx(0.05)
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # 0.03 > 0.05 / 2, though 0.04 < 0.05
    assert holm([]) == []
