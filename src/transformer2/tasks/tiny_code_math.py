"""A story and then a recipe, answered with one return expression (the HumanEval of the embedded world).

Example:
    user       Design skuxit(): Eva has 21 zupok, earns 2, sells 2, finds 7. Then square, lower by 8, raise by 1.
    assistant  return ( ( ( ( ( 21 + 2 ) - 2 ) + 7 ) ** 2 ) - 8 ) + 1
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
        """Three operations of a story, three of a recipe."""
        return world.code_math_question(rng)


TASK = TinyCodeMath
