"""The tasks of the embedded vision world (`transformer2.tiny.vision.world`): questions about drawn signs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from transformer2.tasks.tiny import UNSEEN_SPLITS, TinyTask, compared
from transformer2.tiny.vision import world
from transformer2.types import Example, Verdict

_SLOT = re.compile(r"\s?(\w+) ([A-D])\s?")
_CHOICE = re.compile(r"[^:]*:[^:]*\. Pick (\w+) ([A-Z])\s?\.")


class TinyTextVQA(TinyTask):
    """What does the sign say? Reading of pictograms in drawn pictures (the world's TextVQA); the things are compared.

    Example:
        user       [picture] Read the red sign.
        assistant  red: cherry A, mouse B.
    """

    name = "tiny_textvqa"
    description = "a picture with coloured signs; the question is what one of them says"
    pictures: ClassVar[int] = 1
    draw = staticmethod(world.questions)
    ask: ClassVar[Callable[..., world.ReadingQuestion]] = staticmethod(world.reading_question)

    def answer(self, question: world.ReadingQuestion) -> str:
        """The things on the sign."""
        return things_read(question.gold()) or ""

    def verify(self, example: Example, completion: str) -> Verdict:
        """One sentence of the form `red: cherry A, mouse B.`; the things count."""
        found = things_read(completion)
        if found is None:
            return Verdict.of(False, None, "not a reading of the form '<colour>: <thing> A, <thing> B.'")
        return compared(found == example.answer, found)


class TinyOKVQA(TinyTextVQA):
    """Which thing on the sign is it? Reading of four things and facts of the text world (its OK-VQA); unseen.

    Thing and letter are compared: its place on the sign is what the question does not tell.

    Example:
        user       [picture] What does the red sign say? Find the small fruit.
        assistant  red: mouse A, cherry B, melon C, bear D. Pick cherry B.
    """

    name = "tiny_okvqa"
    description = "a picture with coloured signs; the question is which thing on one of them is of a size and a kind"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS
    ask = staticmethod(world.knowing_question)

    def answer(self, question: world.ReadingQuestion) -> str:
        """The thing and its letter."""
        return question.gold().partition("Pick ")[2].removesuffix(".")

    def verify(self, example: Example, completion: str) -> Verdict:
        """What the sign says, and one choice: the choice counts."""
        match = _CHOICE.fullmatch(completion.strip())
        if not match:
            return Verdict.of(False, None, "not of the form '<colour>: <what the sign says>. Pick <thing> <letter>.'")
        found = f"{match[1]} {match[2]}"
        return compared(found == example.answer, found)


def things_read(completion: str) -> str | None:
    """`cherry mouse` of `red: cherry A, mouse B.`; None of anything else.

    The colour is not judged: what counts is what the sign says.
    """
    _, colon, read = completion.strip().partition(":")
    slots = [_SLOT.fullmatch(slot) for slot in read.strip().removesuffix(".").split(",")]
    if not colon or not read.strip().endswith(".") or not all(slots):
        return None
    if [slot[2] for slot in slots if slot] != list("ABCD"[: len(slots)]):
        return None
    return " ".join(slot[1] for slot in slots if slot)
