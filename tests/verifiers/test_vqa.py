"""VQA accuracy: the definition, the normalisation, and what a completion is worth."""

import random
from itertools import combinations
from statistics import fmean

import pytest

from transformer2.verifiers.vqa import normalised, soft_score, verify_vqa

SAME = [
    ("The Coca-Cola.", "coca cola"),
    ("two", "2"),
    ("None", "0"),
    ("dont walk", "don't walk"),
    ("youdve", "youdve"),  # two apostrophes missing: nobody knows
    ("you'dve", "you'd've"),
    ("100,978", "100978"),
    ("2:50 pm", "2:50 PM"),
    ("St. Louis", "st louis"),
    ("yes!", "yes"),
    ("a\nstop sign", "stop  sign"),
    ("(left)", "left"),
    ("3.5", "3.5"),
    ("what?", "what"),
]
OTHER = [("girls", "girl's"), ("3.5", "35"), ("twenty", "20"), ("2:50", "250"), ("newyork", "new york"), (".5", "5")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_does_not_count(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_counts(one, other):
    assert normalised(one) != normalised(other)


def test_normalising_again_changes_nothing_that_matters():
    for one, _ in [*SAME, *OTHER]:
        assert normalised(normalised(one)) == normalised(one)


def defined(answer, answers):
    """The definition, word for word: every set of all annotators but one."""
    said, others = normalised(answer), [normalised(a) for a in answers]
    sets = combinations(others, len(others) - 1)
    return fmean(min(1, sum(a == said for a in left) / 3) for left in sets)


def test_the_score_is_that_of_the_definition_on_10000_answer_sets():
    rng = random.Random(0)
    words = ["red", "Red.", "the red", "blue", "two", "2", "stop sign", "stop-sign", "dont", "don't", "New York", "a"]
    seen = set()
    for _ in range(10_000):
        answers = rng.choices(words[: rng.randint(1, len(words))], k=rng.choice([*range(1, 12), 10, 10, 10]))
        answer = rng.choice(words)
        assert soft_score(answer, answers) == pytest.approx(defined(answer, answers), abs=1e-12)
        seen.add(round(soft_score(answer, answers), 3))
    assert {0.0, 0.3, 0.6, 0.9, 1.0} < seen


def test_ten_annotators():
    for same, score in enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]):
        assert soft_score("Red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(score)


def test_a_verdict_has_the_papers_reward_and_the_score():
    answers = ["red"] * 2 + ["dark red"] + ["blue"] * 7
    right, half, wrong = (verify_vqa(text, answers) for text in ("Blue.", "red", "dark red"))
    assert [v.reward for v in (right, half, wrong)] == [1, 1, -0.1]
    assert [v.score for v in (right, half, wrong)] == [1, 0.6, 0.3] and [v.correct for v in (half, wrong)] == [
        True,
        False,
    ]
    soft = [verify_vqa(text, answers, soft_reward=True).reward for text in ("blue", "red", "dark red", "green")]
    assert soft == pytest.approx([1, 0.56, 0.23, -0.1])
    assert verify_vqa("green", answers).reason == "no annotator said 'green'"


def test_a_blank_completion_is_no_answer_even_where_the_annotators_said_an_article():
    for text in ("", " \n"):
        verdict = verify_vqa(text, ["A"] * 10)
        assert (verdict.score, verdict.correct, verdict.extracted, verdict.reason) == (0, False, None, "no answer")
    assert verify_vqa("a", ["A"] * 10).score == 1


def test_fewer_than_four_annotators_make_nothing_right():
    assert [soft_score("red", ["red"] * n) for n in (1, 2, 3, 4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
