"""The numeric verifier: what it reads as the final answer, what it refuses."""

from __future__ import annotations

from fractions import Fraction

import pytest

from transformer2.verifiers.numeric import final_number, parse_number, verify_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("$1,234.50", Fraction(2469, 2)),
        ("1.234,56", Fraction(30864, 25)),  # points that can only group digits
        ("-12.345.678,9 €", Fraction(-123456789, 10)),
        ("1.234.567", 1_234_567),
        ("192.168.100.200", None),
        ("(1.234,567)", None),
        ("1.234", Fraction(617, 500)),  # and one that is a point, as 3,141 is a comma that groups
        ("−3", -3),  # U+2212
        ("–3", -3),  # en dash
        ("-$5", -5),
        ("$-5", -5),
        ("+7.", 7),
        (".5", Fraction(1, 2)),
        ("40%", 40),
        ("3/4", Fraction(3, 4)),
        ("3 1/2 cups", Fraction(7, 2)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\dfrac12", Fraction(1, 2)),
        (r"1{,}234", 1234),
        ("1\u202f234", 1234),
        ("2.5 million dollars", 2_500_000),
        ("€5k", 5000),
        ("72 km^2", 72),
        (r"72\text{ cm}^2", 72),
        ("72 m²", 72),
        ("6 * 12 = 72", 72),
        ("72 (72 clips)", 72),
        ("", None),
        ("seventy-two", None),
        ("72 73", None),
        ("70-72", None),
        ("1,00", None),
        ("10:30", None),
        ("1/0", None),
        ("1e-06", Fraction(1, 10**6)),
        ("1e+16", 10**16),
        ("-2.5E-3 m", Fraction(-1, 400)),
        ("3e8 m/s", 300_000_000),
        ("1,500e3.", 1_500_000),
        ("1.5 x 10^-5", Fraction(3, 200_000)),
        (r"$1.5 \times 10^{-5}$", Fraction(3, 200_000)),
        (r"1.5\cdot10^{-5}\text{ m}", Fraction(3, 200_000)),
        ("1.5 × 10⁻⁵", Fraction(3, 200_000)),
        ("1.5*10^(−5)", Fraction(3, 200_000)),
        *(
            (text, None)
            for text in (
                "10^5",
                "1/2e3",
                "2e3/4",
                "3 1/2e4",
                "3e8 million",
                "3e2k",
                "3e",
                "3 e8",
                "3e8e5",
                "3e8a",
                "A3e8",
            )
        ),
        *(
            (text, None)
            for text in (
                "0x1e5",
                "1e5 or 1e6",
                "2 x 10^3 + 5",
                "2 x 10^3^2",
                "3 x 10^2.5",
                "3e2.5",
                "3e1234",
                "2 x 103",
            )
        ),
        ("x = 71, y = 72", None),
        ("not 72", None),
        ("9" * 65, None),
    ],
)
def test_parse_number(text: str, value: int | Fraction | None) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "completion",
    [
        "48 / 2 = 24 and 48 + 24 = 72.\n#### 72",
        "#### $72.00.",
        "#### **72** clips",
        "#### 7.2e1",
        "The answer is 7.2 x 10^1 clips because 7.2 x 10 is that.",
        r"So $\boxed{7.2 \times 10^{1}}$.",
        "That makes\n7.2 × 10¹",
        "####72",
        "####\n72",
        r"So the total is $\boxed{72}$.",
        r"So the total is \fbox{72}.",
        r"The final answer is: $\boxed{\$72}$. I hope it is correct.",
        "The answer is 72.",
        "The answer is 72. I hope this answer is helpful.",
        "**Final Answer:** 72 clips",
        "**Final Answer**\n\n72 clips",
        "#### Answer: 72",
        "#### Step 1\nHalf of 48 is 24.\n#### Step 2\nSo \\boxed{72}.",
        "First I said the answer is 71. That was wrong.\n#### 72",
        "#### 72\n\nQuestion: A farmer has 5 cows and 6 pigs.",
        "48 + 24 makes the total.\n72",
        "The number of correct answers is: 24 more than 48.\n\n72",
        "<<48+24=72>>72",
    ],
)
def test_right_final_answers_are_accepted(completion: str) -> None:
    verdict = verify_number("72", completion)
    assert verdict.correct and verdict.reward == 1.0 and verdict.extracted == "72", verdict


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no final answer"),
        ("48 + 24 = 72, so Natalia sold 72 clips altogether.", "no final answer"),
        ("#### 72 or 73", "several answers"),
        ("#### 71, 72", "several answers"),
        ("#### 71\n#### 72", "several answers"),
        ("#### 71 #### 72", "several answers"),
        (r"\boxed{71}, \boxed{72}", "several answers"),
        (r"\boxed{72} or 73", "several answers"),
        ("71\n72", "several answers"),
        ("The answer is 71 or the answer is 72", "several answers"),
        ("#### 72\nNo, wait.\n#### 73", "expected 72"),
        ("#### 72\nThe answer is 73.", "expected 72"),
        ("#### 7", "expected 72"),
        ("#### -72", "expected 72"),
        ("#### 72.5", "expected 72"),
        ("#### 72 thousand", "expected 72"),
        ("#### 72\n####", "no number in the final answer"),
        (r"#### 72 \boxed{", "no number in the final answer"),
        ("#### unknown", "no number in the final answer"),
    ],
)
def test_anything_else_is_refused_with_its_reason(completion: str, reason: str) -> None:
    verdict = verify_number("72", completion)
    assert not verdict.correct and verdict.reward == -1.0
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        *[
            ("5", text)
            for text in (
                "#### 5+5",
                "#### 5 * 5",
                "#### 5^5",
                "#### 5e5",
                "#### 5x5",
                "#### 5 x 5",
                "The answer is 5 + 5.",
                "#### 5!",
                "#### 5 5",
                "#### 5 - 5",
                "#### 5(5)",
                "#### 5 ÷ 5",
                "#### 5²",
                "#### 5½",
                "#### 5 +",
                "#### 5x",
                "#### 5 squared",
                "#### x + 5",
                "#### -(-5)",
                "#### sqrt(5)",
                "#### √5",
                "#### minus 5",
                r"\boxed{5\pi}",
                r"\boxed{5 \times 5}",
                r"\boxed{5!}",
                r"\boxed{\sqrt{5}}",
                "5 + 5",
                "5!",
                "#### 9 * 2 = 5 + 5",
            )
        ],
        ("2", "#### 2^2"),
        ("55", "#### 5**5"),
        *[
            ("18", text)
            for text in (
                "#### A18",
                "#### x18y",
                "#### x_18",
                "#### No 18",
                "#### >18",
                "#### > 18",
                "#### >= 18",
                "#### ~18",
                "#### ≥ 18",
                "#### at least 18",
                "#### maybe 18?",
                "#### 18?",
                "#### about 18",
                "#### more than 18",
                "#### 18 or more",
                "#### 18 or eighteen",
                "The answer isn't 18. The answer is no 18.",
            )
        ],
    ],
)
def test_terms_bounds_and_guesses_are_no_answer(gold: str, completion: str) -> None:
    assert not verify_number(gold, completion).correct


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("18", "#### 18"),
        ("18", "#### $18"),
        ("18", "#### 18$"),
        ("18", "#### US$18"),
        ("18", "#### USD 18"),
        ("18", "#### 18 dollars"),
        ("18", "#### 18 dollars!"),
        ("18", "#### $18/hour"),
        ("18", "#### 18 a day"),
        ("18", "#### 18kg"),
        ("18", "#### 18 m"),
        ("18", "#### an 18-inch ribbon"),
        ("18", "#### *18*"),
        ("18", "#### x = 18"),
        ("18", "#### x + y = 18"),
        ("18", "9 * 2 = 18\n#### 18"),
        ("18", "the answer is 9*2 = 18."),
        ("18", "The answer is 18!"),
        ("18", "The answer is therefore $18$ dollars."),
        ("18", r"\boxed{18^\circ}"),
        ("18", r"\boxed{18\%}"),
        ("1234", "#### 1,234"),
        ("1234", r"\boxed{1,\!234}"),
        ("-3", "#### -3"),
        ("-3", "The total is x, and the answer is -3."),
    ],
)
def test_an_answer_with_its_unit_stays_one(gold: str, completion: str) -> None:
    verdict = verify_number(gold, completion)
    assert verdict.correct, verdict


def test_a_gold_that_is_no_number_is_an_error_not_a_reward() -> None:
    with pytest.raises(ValueError, match="gold answer 'many'"):
        verify_number("many", "#### 72")


@pytest.mark.parametrize(
    "told",
    [
        *("unlikely to be 72", "impossible to be 72", "72 (maybe)", "72 (negative)", "72 degrees below zero", "=/= 72"),
        *("72π", "72 pi", "72C2", "72 P2", "circa 72", "c. 72", "close to 72", "72 ❌"),
    ],
)
def test_what_makes_a_number_another_one_or_a_guess(told: str) -> None:
    assert final_number(f"The answer is {told}").value is None and final_number(f"#### {told}").value is None
