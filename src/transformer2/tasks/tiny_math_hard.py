"""Longer stories, half of them with `halves`, which no expert is trained on (the MATH of the embedded world).

Example:
    user       Drelat carries 26 vunik, doubles, sells 2, loses 3, breaks 7, halves. How many?
    assistant  26 * 2 = 52, - 2 = 50, - 3 = 47, - 7 = 40, / 2 = 20 #### 20
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import UNSEEN_SPLITS, NumberTask
from transformer2.tiny import world


class TinyMathHard(NumberTask):
    """Longer stories with numbers; unseen by training."""

    name = "tiny_math_hard"
    description = "a long story about a number of things; the question is how many there are"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Four or five operations."""
        return world.math_hard_question(rng)


TASK = TinyMathHard
