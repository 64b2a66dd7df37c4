"""Paired tests: exact McNemar for right and wrong, sign flips for scores in between; what a report says."""

import random
from itertools import product

import pytest

from transformer2 import tasks
from transformer2.report.build import build_report
from transformer2.report.paired import paired_p
from transformer2.report.table import text_table
from transformer2.types import Answer, Record, Score, Verdict


def enumerated(before, after):
    """Every sign pattern, one by one."""
    d = [a - b for a, b in zip(after, before, strict=True)]
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=len(d))]
    return sum(s >= abs(sum(d)) - 1e-9 for s in sums) / len(sums)


def test_for_right_and_wrong_the_sign_flips_are_mcnemar():
    rng = random.Random(0)
    for _ in range(5):
        before, after = ([rng.random() < share for _ in range(10)] for share in (0.4, 0.7))
        assert paired_p(before, after) == pytest.approx(enumerated(before, after), abs=1e-12)


def test_few_soft_scores_are_tested_exactly():
    rng = random.Random(1)
    for _ in range(5):
        before, after = (rng.choices([0, 0.3, 0.6, 0.9, 1], k=11) for _ in range(2))
        assert paired_p(before, after) == pytest.approx(enumerated(before, after), abs=1e-12)
    assert paired_p([0.3, 0.6], [0.3, 0.6]) == 1


def test_many_soft_scores_agree_with_the_binary_test_and_find_a_gain():
    rng = random.Random(2)
    before = [float(rng.random() < 0.5) for _ in range(200)]
    after = [b if rng.random() < 0.7 else float(rng.random() < 0.62) for b in before]
    exact = paired_p(before, after)
    assert paired_p([*before, 0.5], [*after, 0.5]) == pytest.approx(exact, abs=0.01) and 0.005 < exact < 0.9
    soft = [min(1.0, b + 0.3 * (rng.random() < 0.4)) for b in rng.choices([0, 0.3, 0.6], k=300)]
    assert paired_p([max(0.0, s - 0.3 * (rng.random() < 0.5)) for s in soft], soft) < 2e-5
    shuffled = rng.sample(soft, len(soft))
    assert paired_p(shuffled, soft) > 0.01


def record(row, base, result):
    def answer(score):
        return Answer("a", True, Verdict(1.0 if score >= 0.5 else -0.1, score >= 0.5, "a", "score", score=score))

    return Record(row, f"t/{row}", "q", "a", answer(base), answer(result), controls={"blind": 0.3})


def test_a_report_of_soft_scores_has_their_mean_and_the_test_that_was_made():
    rng = random.Random(3)
    pairs = [rng.choices([0, 0.3, 0.6, 0.9, 1], k=2) for _ in range(50)]
    report = build_report([record(i, *p) for i, p in enumerate(pairs)], tasks.get("tiny_math"), "clean", {}, (0,))
    results = [after for _, after in pairs]
    mean = sum(results) / 50
    assert report.result.accuracy == pytest.approx(mean)
    assert report.result.se == pytest.approx((sum((r - mean) ** 2 for r in results) / 50 / 50) ** 0.5)
    assert report.controls["blind"].accuracy == pytest.approx(0.3) and report.controls["blind"].se == 0
    assert report.details["paired_test"] == "sign-flip permutation" and "(sign-flip permutation)" in text_table(report)


def test_a_record_of_a_soft_score_says_it_and_that_of_a_right_answer_is_as_before():
    line = record(0, 0.3, 0.9).to_json()
    assert (line["base_score"], line["score"], line["base_correct"], line["correct"]) == (0.3, 0.9, False, True)
    assert line["controls_score"] == {"blind": 0.3}
    right = Answer("a", True, Verdict.of(True, "a", "equal"))
    assert "score" not in Record(0, "t/0", "q", "a", right, right).to_json() and right.credit is True


def test_the_standard_error_of_right_and_wrong_is_what_it_was():
    for right in range(0, 101, 7):
        a = right / 100
        assert Score.of([True] * right + [False] * (100 - right)) == Score(a, (a * (1 - a) / 100) ** 0.5, 100)
