"""Choices: what is read as one option, what is refused, and a gold that is none."""

from __future__ import annotations

import pytest

from transformer2.verifiers.choice import final_choice, verify_choice

OPTIONS = {"A": "plant cells", "B": "animal cells", "C": "bacteria", "D": "both A and B"}
NUMBERED = {"A": "2", "B": "3", "C": "4 m", "D": "1"}
KEYS = {"1": "A", "2": "B", "3": "C", "4": "D"}


@pytest.mark.parametrize(
    "completion",
    [
        "B",
        "(B)",
        "(b)",
        "the answer is b",
        "The answer is (b) animal cells",
        "**B**",
        "B.",
        "B. animal cells",
        "B) animal cells.",
        "animal cells",
        "Animal cells.",
        r"\boxed{B}",
        r"The answer is $\boxed{\text{B. animal cells}}$.",
        "#### B",
        "The answer is (B)",
        "the answer is B.",
        "The answer is: **B) animal cells**",
        "The answer is B (animal cells).",
        "The answer is B - animal cells",
        "The answer is animal cells (B).",
        'The answer is "animal cells".',
        "The answer is the animal cells.",
        "The answer is definitely B.",
        "The answer is B because plants are green.",
        "The answer is B. C is wrong because of its size.",
        "The answer is B. I hope this answer is helpful.",
        "The answer is as follows:\n(B)",
        "The answer to this question is: B",
        "The correct option is (B) animal cells.",
        "It can't be A, so the answer is B.",
        "B is the correct answer.",
        "Plants are out. So, option B is correct.",
        "**Final Answer**\n\nB",
        "Answer: B\n\nExplanation: plant cells have walls.",
        "Final Answer: The final answer is $\\boxed{B}$. I hope it is correct.",
        "A. plant cells\nB. animal cells\nC. bacteria\nD. both A and B\n\nThe answer is B",
        "The answer is A. Wait, no.\nThe answer is B.",
        "First I thought the answer is A.\nThat was wrong.\nB",
        "B. animal cells\n\nThey have no walls, and plants do.",
    ],
)
def test_right_final_answers_are_accepted(completion: str) -> None:
    verdict = verify_choice("B", OPTIONS, completion)
    assert verdict.correct and verdict.reward == 1.0 and verdict.extracted == "B", verdict


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no final answer"),
        ("A plant cell has a wall.", "no final answer"),
        ("The answer is a plant.", "no final answer"),
        ("the answer is b plant", "no final answer"),
        ("Animal cells have no walls, so B fits.", "no final answer"),
        ("I don't think B is correct.", "no final answer"),
        ("Neither A nor B is correct.", "no final answer"),
        ("The answer isn't B.", "no final answer"),
        ("The wrong answer is B.", "no final answer"),
        ("The answer is", "no final answer"),
        ("The answer is (", "no final answer"),
        ("The answer is A plant", "not a usable choice"),
        ("The answer is (B", "not a usable choice"),
        (r"\boxed{B", "not a usable choice"),
        ("The answer is (E)", "not a usable choice"),
        ("The answer is B.\nThe answer is (E).", "not a usable choice"),
        ("The answer is B.\nThe answer is (e).", "not a usable choice"),
        ("The answer is not B.", "not a usable choice"),
        ("I do not think the answer is B.", "not a usable choice"),
        ("If the answer is B, then C.", "not a usable choice"),
        ("The answer is C, not B", "expected B"),
        ("The answer is B?", "not a usable choice"),
        ("The answer is maybe B", "not a usable choice"),
        ("The answer is B or C", "not a usable choice"),
        ("The answer is either A or B", "not a usable choice"),
        ("The answer is A and B", "not a usable choice"),
        ("The answer is A/B", "not a usable choice"),
        ("The answer is B, C", "not a usable choice"),
        ("The answer is (A)(B)(C)(D)", "not a usable choice"),
        ("The answer is A. B. C. D.", "not a usable choice"),
        ("The answer is animal cells. Or bacteria.", "several answers"),
        ("The answer is (B) plant cells", "not a usable choice"),
        ("The answer is B. plant cells", "not a usable choice"),
        ("The answer is plant cells (B)", "not a usable choice"),
        ("The answer is (B) animal cel", "not a usable choice"),
        (r"\boxed{B} or C", "not a usable choice"),
        (r"\boxed{A}, \boxed{B}", "several answers"),
        ("The answer is A\nThe answer is B", "several answers"),
        ("The answer is A or the answer is B", "several answers"),
        ("The answer is B\nA\nC\nD", "several answers"),
        ("A\nB", "several answers"),
        ("A. plant cells\nB. animal cells\nC. bacteria\nD. both A and B", "several answers"),
        ("The answer is B.\nNo.\nThe answer is C.", "expected B"),
        ("The answer is plant cells", "expected B"),
        ("The answer is both A and B", "expected B"),
    ],
)
def test_anything_else_is_refused_with_its_reason(completion: str, reason: str) -> None:
    verdict = verify_choice("B", OPTIONS, completion)
    assert not verdict.correct and verdict.reward == -1.0 and verdict.reason == reason, verdict


@pytest.mark.parametrize(
    ("text", "with_keys", "without"),
    [
        ("The answer is (3)", "C", None),
        ("The answer is 4", "D", None),
        ("The answer is 4 m", "C", "C"),
        ("The answer is 2", None, "A"),  # the number of B and the text of A: not a guess either way
        ("The answer is (D) 1", "D", "D"),
    ],
)
def test_numbers_name_options_only_where_the_row_numbers_them(
    text: str, with_keys: str | None, without: str | None
) -> None:
    assert final_choice(NUMBERED, text, KEYS).value == with_keys
    assert final_choice(NUMBERED, text).value == without


def test_case_tells_options_apart_where_only_case_does() -> None:
    genes = {"A": "RR", "B": "Rr", "C": "rr"}
    assert [final_choice(genes, f"The answer is {g}").value for g in ("RR", "Rr", "rr", "rR")] == ["A", "B", "C", None]


@pytest.mark.parametrize(("one", "other"), [("Yes", "Yes!"), ("n!", "n"), ("5'", '5"'), ("{1}", "1")])
def test_options_that_read_alike_are_named_by_their_letters_alone(one: str, other: str) -> None:
    options = {"A": one, "B": other, "C": "none"}
    for text in (one, other, f"The answer is {one}", f"The answer is {other}."):
        assert final_choice(options, text).value is None, text
    for text in ("The answer is (B)", f"(B) {other}", f"The answer is B. {other}"):
        assert final_choice(options, text).value == "B", text
    assert final_choice(options, "The answer is none.").value == "C"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C is wrong. The answer is B.", "B"),
        ("It can't be C. So the answer is B.", "B"),
        ("The answer is not C. The answer is B.", "B"),
        ("B is wrong. The answer is C.", "C"),
        ("C is wrong.", None),
        ("C is wrong. The answer is D.", None),
        ("B is wrong. The answer is B.", None),
        ("D is wrong. The answer is B.", None),
    ],
)
def test_of_two_options_the_one_that_is_denied_no_longer_counts(text: str, letter: str | None) -> None:
    assert final_choice(OPTIONS, f"The answer is B. The answer is C. {text}").value == letter


def test_a_gold_that_is_no_option_is_an_error_not_a_reward() -> None:
    with pytest.raises(ValueError, match="gold answer 'E'"):
        verify_choice("E", OPTIONS, "E")
