"""Choices among four lettered things by size and category (the ARC-Easy of the embedded world).

Example:
    user       Name the short vehicle: grekap A, trofak B, whale C, skarok D.
    assistant  Pick grekap A.
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import ChoiceTask
from transformer2.tiny import world


class TinyReasoning(ChoiceTask):
    """Lettered choices; the letter is compared."""

    name = "tiny_reasoning"
    description = "a choice among lettered things; the answer is a letter"

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Four options."""
        return world.reasoning_question(rng)


TASK = TinyReasoning
