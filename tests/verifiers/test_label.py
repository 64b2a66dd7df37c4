"""Labels: the whole answer or nothing."""

import pytest

from transformer2.verifiers.label import find_label, verify_label

LABELS = ("math", "code", "other")


@pytest.mark.parametrize("text", ["math", " Math.\n", "MATH"])
def test_the_label_alone_is_accepted(text):
    assert verify_label("math", LABELS, text).reward == 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("code", "expected math"),
        ("", "not a category"),
        ("It is math", "not a category"),
        ("math code", "not a category"),
        ("math, code, other", "not a category"),
        ("math\ncode", "not a category"),
        ("not math", "not a category"),
        ("mathematics", "not a category"),
        ("mat", "not a category"),
        ("maths", "not a category"),
        ("math or code", "not a category"),
    ],
)
def test_anything_else_is_refused(text, reason):
    verdict = verify_label("math", LABELS, text)
    assert verdict.reward == -1.0 and verdict.reason == reason


def test_a_found_label_is_spelled_as_given():
    assert find_label(("Math",), "math") == "Math"


def test_a_gold_that_is_no_label_is_an_error_not_a_reward():
    with pytest.raises(ValueError, match="gold label 'maths'"):
        verify_label("maths", LABELS, "maths")
