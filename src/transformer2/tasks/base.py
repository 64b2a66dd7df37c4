"""What a task is: rows -> messages, and a verdict on a completion. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from transformer2.types import Example, Verdict
from transformer2.verifiers.isolated import attempt, start_workers, verify_in_workers


class Task(ABC):
    """One task: questions, gold answers and a verifier.

    Attributes:
        name: The name in configs and in example ids.
        description: One line on what the questions ask; prompt dispatch shows it to the model.
        splits: Names of the splits that `examples` accepts.
        max_new_tokens: Completion budget that fits the task's answers.
        verify_seconds: Wall-clock seconds that `verify` may take for one answer.
        bounded: Whether `verify` ends within milliseconds on any text, so that it may run in the trainer's process.
            Say so only with a reason in the docstring: a verifier that hangs there holds the run up for ever.
        protocol: `clean`, unless an option makes the task use rows that others keep for scoring (`paper`); named in
            every report.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    max_new_tokens: ClassVar[int] = 512
    verify_seconds: ClassVar[float] = 5.0
    bounded: ClassVar[bool] = False
    protocol: str = "clean"

    @abstractmethod
    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in a fixed order.

        Args:
            split: One of `splits`.
            data_dir: Folder with local copies of the rows; None reads the Hub.

        Raises:
            DataError: Unknown split, unreadable source, or a row with a missing or odd field (named).
        """

    @abstractmethod
    def verify(self, example: Example, completion: str) -> Verdict:
        """The verdict on one completion: +1 right, -1 wrong. A pure function of its arguments."""

    def verify_many(
        self, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
    ) -> list[Verdict]:
        """One verdict per completion, in order; `verifiers.verify_all` calls this.

        `verify` runs in warm worker processes that are killed when it hangs (in this one when the task is `bounded`).

        Args:
            examples: The questions.
            completions: The answers, one for each question.
            deadline: Seconds for the whole batch; None takes one that fits its size.
        """
        if self.bounded:
            return [attempt(self, example, text) for example, text in zip(examples, completions, strict=True)]
        return verify_in_workers(self, examples, completions, deadline)

    def warm_up(self) -> None:
        """Start what `verify_many` needs, beside the loading of the model; called before the first row is read.

        Raises:
            UserError: Answers cannot be verified on this machine.
        """
        if not self.bounded:
            start_workers(self)

    def isolation(self) -> str | None:
        """Level of isolation that model-written code runs under, for reports; None for tasks that run none."""
        return None
