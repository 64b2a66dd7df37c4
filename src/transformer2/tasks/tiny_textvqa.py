"""What does the sign say? Reading of pictograms in drawn pictures (the TextVQA of the embedded world).

Example:
    user       [picture] Read the red sign.
    assistant  red: cherry A, mouse B.
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny_signs import SignTask, compare, things_read
from transformer2.tiny.vision import world
from transformer2.types import Example, Verdict


class TinyTextVQA(SignTask):
    """Signs of one to three things; the things are compared."""

    name = "tiny_textvqa"
    description = "a picture with coloured signs; the question is what one of them says"

    def question(self, rng: random.Random) -> world.ReadingQuestion:
        """A sign of one to three things."""
        return world.reading_question(rng)

    def answer(self, question: world.ReadingQuestion) -> str:
        """The things on the sign."""
        return things_read(question.gold()) or ""

    def verify(self, example: Example, completion: str) -> Verdict:
        """One sentence of the form `red: cherry A, mouse B.`; the things count."""
        found = things_read(completion)
        if found is None:
            return Verdict.of(False, None, "not a reading of the form '<colour>: <thing> A, <thing> B.'")
        return compare(found, example.answer)


TASK = TinyTextVQA
