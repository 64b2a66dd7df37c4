"""Recipes for a function of x, answered with one return expression (the MBPP of the embedded world).

Example:
    user       Make drokat(x): lower by 6, triple, raise by 1, lift by 6.
    assistant  return ( ( ( x - 6 ) * 3 ) + 1 ) + 6
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import ProgramTask
from transformer2.tiny import world


class TinyCode(ProgramTask):
    """Recipes; the returned expression is run on seven inputs."""

    name = "tiny_code"
    description = "a recipe for a small function; the answer is its return statement"

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Four operations on x."""
        return world.code_question(rng)


TASK = TinyCode
