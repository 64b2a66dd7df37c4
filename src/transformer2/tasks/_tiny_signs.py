"""What the tasks of the embedded vision world share: questions with a picture, and what a sign is said to say.

As in the text world (`_tiny.py`), `fields["solution"]` is a complete right answer in the model's own format.
"""

from __future__ import annotations

import random
import re
from types import MappingProxyType
from typing import ClassVar

from transformer2.tasks._tiny import SPLITS
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.tiny.vision import world
from transformer2.types import Example, Verdict

_SLOT = re.compile(r"\s?(\w+) ([A-D])\s?")


class SignTask(Task):
    """A task whose questions and pictures are drawn from the embedded vision world, the same ones on every machine.

    Inline: the verifiers split and match text in linear time.

    Args:
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`. The embedded model knows few words besides its own.
    """

    max_new_tokens: ClassVar[int] = 40
    pictures: ClassVar[int] = 1
    verify_in = "inline"
    sources: ClassVar[dict[str, tuple[str, int]]] = SPLITS

    def __init__(self, system: str | None = None, prompt: str = "{question}") -> None:
        self.wording = Wording(self.name, system, prompt, ("question",))

    def question(self, rng: random.Random) -> world.ReadingQuestion:
        """One question about a picture."""
        raise NotImplementedError

    def answer(self, question: world.ReadingQuestion) -> str:
        """What `verify` compares with."""
        raise NotImplementedError

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in a fixed order, each about a picture of its own; `data_dir` is not used."""
        self.check_split(split)
        source, count = self.sources[split]
        return [
            Example(
                f"{self.name}/{split}/{row}",
                self.wording.messages(question=question.text),
                self.answer(question),
                MappingProxyType({"solution": question.gold()}),
                (question.picture,),
            )
            for row, question in enumerate(world.questions(self.question, source, count, seed=self.name))
        ]

    def solution(self, example: Example) -> str | None:
        """What the sign says and, where it is asked for, the choice."""
        return example.fields.get("solution")


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


def compare(found: str, answer: str) -> Verdict:
    """The verdict on what was found."""
    return Verdict.of(found == answer, found, "right" if found == answer else "wrong answer")
