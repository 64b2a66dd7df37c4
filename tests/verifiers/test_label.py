"""Labels: exactly one category named is that category; none or two is not an answer."""

from __future__ import annotations

import pytest

from transformer2.verifiers.label import find_label, verify_label

LABELS = ("math", "code", "other")

NAMED = {
    "math": [
        "math",
        " Math.\n",
        "MATH",
        "math\n",
        "Math!",
        "**math**",
        "*Math*",
        "__math__",
        "_math_",
        "`math`",
        "- math",
        "* math",
        "1. math",
        "> math",
        "# Math",
        "(math)",
        "[math]",
        "<math>",
        '"math"',
        "'math'.",
        "“math”",
        "«math»",
        "「math」",
        "ｍａｔｈ",
        "math。",
        "math?",
        "math:",
        "It is math",
        "It's math.",
        "The request is math.",
        "The request is **math**.",
        'The answer is "math"',
        "Category: math",
        "category = math",
        "Answer:\nmath",
        r"\boxed{math}",
        r"\boxed{\text{math}}",
        "This request belongs to the category math, since it asks for a number.",
        "I would say this is a math problem.",
        "Math-related",
        "math math math",
        "math\n\nMath is the right category.",
        "No doubt it is math.",
        "No, it is math.",
        "<think>Is it code? No, not code.</think>\n\nmath",
        "code or other? Hmm.\n</think>\nmath",
        '{"category": "math"}',
        "Reasoning: other words fit, but it asks for code.\nAnswer: math",
        "math. The other kinds do not apply.",
        "math, other than that nothing",
        "On the other hand, math",
        "Is it other? No.\nAnswer: math",
        "Is it code? No. Final answer: math",
        "Code? No. Math? Yes. Answer: math",
        "Is it code? Not really. Answer: math",
        "Does it need code? No. Answer: math.",
        "Is it code? No! Answer: math",
        "Is it code?\nNo.\nAnswer: math",
        "Is it a code request? I don't think so. Answer: math",
        "It could be code, but no. Answer: math",
        "Is it code? No. Answer: math",
        "Is it code? No. The answer is math.",
        "Is this code? No. Category: math",
        "Is it code? No, it is math.",
        "Is it code? No. It is math.",
        "Is it code? No. So math.",
        "Could it be code? No. Label: math",
        "Not code. Answer: math",
        "It is code. Answer: math",
        "Is it code? No. Is it math? Yes.",
        "Is it math? Yes.",
        "Is it code or math? Answer: math",
        "Answer: code? No. Answer: math",
    ],
    "code": [
        "Is it math? No. Answer: code",
        "Is it code? No. Answer: code",
        "Category: code",
        "It is a code request.",
        "code: a short function",
        "Code,",
        "Is it code? Yes. Answer: code",
    ],
    "other": [
        "other",
        "Other.",
        "None of them, so other",
        "This is something other.",
        "neither math nor code, so other",
    ],
    None: [
        "",
        " ",
        "I do not know.",
        "mathematics",
        "mat",
        "maths",
        "aftermath",
        "tiny_math",
        "math2",
        "coding",
        "I would say this is a coding problem",
        "others",
        "another",
        "math code",
        "math, code, other",
        "math\ncode",
        "math or code",
        "math/code",
        "math-code",
        "math, code or other",
        "It is math. It is code.",
        "not math but code",
        "not math",
        "This is not a math problem.",
        "It isn't math.",
        "I don't think that it is math",
        "non-math",
        "It cannot be math",
        "no math here",
        "neither math",
        "math is not the category",
        "math isn't it",
        "math is wrong",
        *(
            f"{words} math"
            for words in ["anything but", "everything except", "far from", "unlike", "hardly", "without"]
        ),
        "math-free",
        "It has nothing to do with math.",
        "The request lacks math.",
        "math would be incorrect.",
        "I doubt that it is math",
        "Is it math?",
        "On the other hand, this is hard to say.",
        "Answer: not math",
        "Is it code? No. Answer: math, not code",
        "Is it code? No. Answer: not math",
        "Is it code? No. Answer: math or other",
        "Is it math? No.",
        "Is it code?",
        "Answer: code. Answer: math",
        "<think>It could be math",
        "<think>math</think>",
    ],
}


@pytest.mark.parametrize(("label", "text"), [(label, text) for label, texts in NAMED.items() for text in texts])
def test_exactly_one_label_named_is_that_label(label: str | None, text: str) -> None:
    assert find_label(LABELS, text) == label
    if label is None:
        assert verify_label("math", LABELS, text).reason == "not a category"


@pytest.mark.parametrize(
    ("labels", "text", "found"),
    [
        (("Math",), "math", "Math"),
        (("math", "math proofs"), "It is math proofs.", "math proofs"),
        (("math", "math proofs"), "It is math.", "math"),
        (("math", "math proofs"), "math, and math proofs", None),
        (("math", "code", "code math"), "code math", "code math"),
        (("math", "code", "code math"), "code, math", None),
        (("arc_easy", "arc_challenge", "gsm8k"), "arc easy", "arc_easy"),
        (("arc_easy", "arc_challenge", "gsm8k"), "**ARC-Easy**", "arc_easy"),
        (("arc_easy", "arc_challenge", "gsm8k"), "__arc_easy__", "arc_easy"),
        (("arc_easy", "arc_challenge", "gsm8k"), "arc", None),
        (("tiny_math", "math"), "tiny_math", "tiny_math"),
        (("tiny_math", "math"), "tiny math", "tiny_math"),
        (("tiny_math", "math"), "math", "math"),
        (("math", "math-hard"), "math-hard", "math-hard"),
        (("math", "code"), "pseudo-code", None),
        (("math", "code"), "code-math", None),
        (("math", "code"), "a zip code", None),
        (("math", "code"), "The postal code is a number: math", "math"),
        (("math", "code"), "It is a dress-code.", None),
        (("math", "code"), "source code", "code"),
        (("math", "code"), "It wants Swift code.", "code"),
        (("math", "code"), "how to sort code, a QR code generator", "code"),
        (("math", "zip code"), "zip code", "zip code"),
        (("c", "c++", "c#"), "It is c++.", "c++"),
        (("c", "c++", "c#"), "c", "c"),
        (("Übersetzung", "math"), "übersetzung", "Übersetzung"),
    ],
)
def test_labels_within_labels(labels: tuple[str, ...], text: str, found: str | None) -> None:
    assert find_label(labels, text) == found


def test_the_reward_follows_the_label() -> None:
    assert verify_label("math", LABELS, "The request is math.").reward == 1.0
    verdict = verify_label("math", LABELS, "- code")
    assert (verdict.reward, verdict.extracted, verdict.reason) == (-1.0, "code", "expected math")


def test_a_gold_that_is_no_label_is_an_error_not_a_reward() -> None:
    with pytest.raises(ValueError, match="gold label 'maths'"):
        verify_label("maths", LABELS, "maths")
