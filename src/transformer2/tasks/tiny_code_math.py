"""A story and then a recipe, answered with one return expression (the HumanEval of the embedded world).

Example:
    user       Code skotuk(): Zirok keeps 12 flags, sells 8, finds 1. Then grow by 3, lower by 5.
    assistant  return ( ( ( 12 - 8 ) + 1 ) + 3 ) - 5
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import UNSEEN_SPLITS, ProgramTask
from transformer2.tiny import world


class TinyCodeMath(ProgramTask):
    """A story, then a recipe; the returned expression is evaluated. Unseen by training."""

    name = "tiny_code_math"
    description = "a story about a number of things and then a recipe; the answer is a return statement"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Two operations of a story, two of a recipe."""
        return world.code_math_question(rng)


TASK = TinyCodeMath
