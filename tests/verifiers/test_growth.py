"""No text holds a reader of final answers up: CPU time is linear in its length.

With the gold rows: no test of the fast suite looks at a clock.
"""

from __future__ import annotations

import pytest
from growth import LARGEST, growth

from transformer2.verifiers.choice import final_choice
from transformer2.verifiers.label import find_label
from transformer2.verifiers.math.final import final_expression
from transformer2.verifiers.numeric import final_number

pytestmark = pytest.mark.gold
OPTIONS = {"A": "plant cells", "B": "animal cells", "C": "bacteria", "D": "both A and B"}
READERS = {
    "choice": lambda text: final_choice(OPTIONS, text),
    "number": final_number,
    "expression": final_expression,
    "label": lambda text: find_label(("math", "code", "other"), text),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "unit",
    [
        *[
            "\n",
            " ",
            "\t",
            " \n",
            "so ",
            "\\boxed{",
            "$",
            "the answer is ",
            "\\boxed5 ",
            "\\boxed{5} or ",
            "$5$ or ",
            "#### ",
        ],
        *[
            "answer ",
            "answer to ",
            "A ",
            "(A) ",
            "A\n",
            "{",
            "}",
            ". ",
            "*",
            "?",
            "B is correct. ",
            "wait, ",
            "no, ",
            "not ",
        ],
        *[
            "it is ",
            "but ",
            "I ",
            "let me ",
            "is ",
            "5 is ",
            "B it is. ",
            "B works too. ",
            "[asy]",
            "<think>",
            "<<",
            "disregard the ",
        ],
        *[
            "because ",
            ": ",
            "final:\n",
            "9",
            "1 ",
            "1,",
            "1/",
            "=",
            "-",
            "\\frac{",
            "\\text{",
            "^",
            "answer" + " " * 50,
            "is" + " " * 50,
        ],
    ],
)
def test_time_is_linear_in_the_length(reader: str, unit: str) -> None:
    for head in ("", "The answer is B. "):
        assert growth(READERS[reader], lambda n, head=head: head + unit * (n // len(unit)) + "\n#### 2 ") < LARGEST
