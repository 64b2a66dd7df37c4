"""Short stories with three operations on a number, answered with a calculator tape (the GSM8K of the embedded world).

Example:
    user       Trumak carries 18 jars, sells 3, buys 1, trades 2. How many?
    assistant  18 - 3 = 15, + 1 = 16, - 2 = 14 #### 14
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import NumberTask
from transformer2.tiny import world


class TinyMath(NumberTask):
    """Stories with numbers; the number behind `####` is compared."""

    name = "tiny_math"
    description = "a short story about a number of things that grows and shrinks; the question is how many there are"

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Three operations."""
        return world.math_question(rng)


TASK = TinyMath
