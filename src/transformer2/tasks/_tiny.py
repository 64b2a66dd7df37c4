"""What the tasks of the embedded world share: drawing the rows of a split, and strict verifiers.

Every example has `fields["solution"]`, a complete right answer in the model's own format (for next-token training and
for the likelihood of right answers), alongside `answer`, which the verifier compares with.
"""

from __future__ import annotations

import random
import re
from functools import cache
from types import MappingProxyType
from typing import ClassVar

from transformer2.tasks import _tiny_program
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.tiny import world
from transformer2.types import Example, Verdict

# Splits of a task and where in the world they come from: (split of the question hash, number of rows).
SPLITS = {"train": ("train", 2048), "validation": ("validation", 256), "test": ("test", 512)}
UNSEEN_SPLITS = {"few_shot": ("validation", 64), "test": ("test", 512)}

_INTEGER = re.compile(r"-?\d{1,9}")
_CHOICE = re.compile(r"Pick (\w+) ([A-Z])\s?\.")


class TinyTask(Task):
    """A task whose questions are drawn from the embedded world, the same ones on every machine.

    Inline: the verifiers split and match text in linear time, and `_tiny_program` limits length, depth and values.

    Args:
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`. The embedded model knows few words besides its own.
    """

    max_new_tokens: ClassVar[int] = 40
    verify_in = "inline"
    sources: ClassVar[dict[str, tuple[str, int]]] = SPLITS

    def __init__(self, system: str | None = None, prompt: str = "{question}") -> None:
        self.wording = Wording(self.name, system, prompt, ("question",))

    def question(self, rng: random.Random, split: str) -> world.Question:
        """One question, as drawn for a split."""
        raise NotImplementedError

    def example(self, question: world.Question, id: str) -> Example:
        """The question as an example, with the answer that `verify` compares with."""
        raise NotImplementedError

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in a fixed order; `data_dir` is not used."""
        self.check_split(split)
        return [self.example(q, f"{self.name}/{split}/{row}") for row, q in enumerate(_questions(type(self), split))]

    def solution(self, example: Example) -> str | None:
        """The worked steps."""
        return example.fields.get("solution")

    def _example(self, question: world.Question, id: str, answer: str, **fields: str) -> Example:
        messages = self.wording.messages(question=question.text)
        return Example(id, messages, answer, MappingProxyType({"solution": question.gold(), **fields}))


@cache
def _questions(task: type[TinyTask], split: str) -> list[world.Question]:
    """Drawn once a process, whatever the wording: a run reads its splits several times."""
    (source, count), made = task.sources[split], task()
    return world.questions(lambda rng: made.question(rng, split), source, count, seed=task.name)


class NumberTask(TinyTask):
    """Answers end in `#### <number>`."""

    def solution(self, example: Example) -> str | None:
        """The worked steps; of a row without them the last line."""
        return super().solution(example) or f"#### {example.answer}"

    def example(self, question: world.Question, id: str) -> Example:
        """The answer is the number."""
        return self._example(question, id, question.gold().split("####")[1].strip())

    def verify(self, example: Example, completion: str) -> Verdict:
        """Exactly one `####`, with one integer and nothing else behind it."""
        _, *finals = completion.split("####")
        if len(finals) != 1:
            return Verdict.of(False, None, "no final answer" if not finals else "several final answers")
        found = finals[0].strip()
        if not _INTEGER.fullmatch(found):
            return Verdict.of(False, None, "final answer is not one integer")
        return _compare(int(found) == int(example.answer), found)


class ProgramTask(TinyTask):
    """Answers are one `return <expression>`."""

    def example(self, question: world.Question, id: str) -> Example:
        """The answer is the right statement; `argument` is the function's argument, empty when it takes none."""
        return self._example(question, id, question.gold(), argument="x" if "(x)" in question.text else "")

    def verify(self, example: Example, completion: str) -> Verdict:
        """The expression must give the right value on every input. Nothing is ever executed."""
        argument = example.fields["argument"]
        wanted = _tiny_program.outputs(example.answer, argument)
        try:
            found = _tiny_program.outputs(completion, argument)
        except _tiny_program.ProgramError as error:
            return Verdict.of(False, None, str(error))
        return _compare(found == wanted, completion.strip())


class ChoiceTask(TinyTask):
    """Answers are `Pick <thing> <letter>.`"""

    def example(self, question: world.Question, id: str) -> Example:
        """The answer is the letter."""
        return self._example(question, id, question.gold().removesuffix(".")[-1])

    def verify(self, example: Example, completion: str) -> Verdict:
        """One sentence with one letter; the letter counts."""
        match = _CHOICE.fullmatch(completion.strip())
        if not match:
            return Verdict.of(False, None, "not one choice of the form 'Pick <thing> <letter>.'")
        return _compare(match[2] == example.answer, match[2])


def _compare(correct: bool, extracted: str) -> Verdict:
    return Verdict.of(correct, extracted, "right" if correct else "wrong answer")
