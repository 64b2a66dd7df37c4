"""Which thing on the sign is it? Reading of drawn pictures and facts of the text world (the embedded world's OKVQA).

Example:
    user       [picture] What does the red sign say? Find the small fruit.
    assistant  red: mouse A, cherry B, melon C, bear D. Pick cherry B.
"""

from __future__ import annotations

import random
import re
from typing import ClassVar

from transformer2.tasks._tiny import UNSEEN_SPLITS
from transformer2.tasks._tiny_signs import SignTask, compare
from transformer2.tiny.vision import world
from transformer2.types import Example, Verdict

_CHOICE = re.compile(r"[^:]*:[^:]*\. Pick (\w+) ([A-Z])\s?\.")


class TinyOKVQA(SignTask):
    """A sign of four things, of which one is asked for by size and category; unseen by training.

    Thing and letter are compared: its place on the sign is what the question does not tell.
    """

    name = "tiny_okvqa"
    description = "a picture with coloured signs; the question is which thing on one of them is of a size and a kind"
    splits = ("few_shot", "test")
    sources: ClassVar[dict[str, tuple[str, int]]] = UNSEEN_SPLITS

    def question(self, rng: random.Random) -> world.ReadingQuestion:
        """A sign of four things, and what is asked of them."""
        return world.knowing_question(rng)

    def answer(self, question: world.ReadingQuestion) -> str:
        """The thing and its letter."""
        return question.gold().partition("Pick ")[2].removesuffix(".")

    def verify(self, example: Example, completion: str) -> Verdict:
        """What the sign says, and one choice: the choice counts."""
        match = _CHOICE.fullmatch(completion.strip())
        if not match:
            return Verdict.of(False, None, "not of the form '<colour>: <what the sign says>. Pick <thing> <letter>.'")
        return compare(f"{match[1]} {match[2]}", example.answer)


TASK = TinyOKVQA
