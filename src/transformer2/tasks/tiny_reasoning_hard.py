"""Choices among six lettered things (the ARC-Challenge of the embedded world).

Example:
    user       Choose the tall garment: castle A, hut B, cap C, whale D, blutik E, menuk F.
    assistant  Pick menuk F.
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import UNSEEN_SPLITS, ChoiceTask
from transformer2.tiny import world


class TinyReasoningHard(ChoiceTask):
    """Lettered choices with more options; unseen by training."""

    name = "tiny_reasoning_hard"
    description = "a choice among six lettered things; the answer is a letter"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Six options."""
        return world.reasoning_hard_question(rng)


TASK = TinyReasoningHard
