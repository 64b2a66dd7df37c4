"""What a task is: rows -> messages, and a verdict on a completion. No torch here."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.types import Example
from transformer2.verifiers import Verifier


class Task(Verifier):
    """One task: questions, gold answers, and a verifier (`Verifier` says what can be declared of it).

    Attributes:
        description: One line on what the questions ask; prompt dispatch shows it to the model.
        splits: Names of the splits that `examples` accepts.
        max_new_tokens: Completion budget that fits the task's answers.
        pictures: Pictures of a question, at most; what `plan` counts with, before a row is read.
        protocol: `clean`, unless an option makes the task use rows that others keep for scoring (`paper`); named in
            every report.
    """

    description: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    max_new_tokens: ClassVar[int] = 512
    pictures: ClassVar[int] = 0
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

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of a `data_dir` that its rows are read from."""
        return (self.name,)

    def solution(self, example: Example) -> str | None:
        """A whole right answer, in the form that the prompt asks for: what `model.objective: next_token` trains on.

        Args:
            example: One of the task's.

        Returns:
            The text, which `verify` finds right; None where the task, or this row, has none.
        """
        return None

    def check_solutions(self) -> None:
        """Refuse to be trained on solutions where the task has none.

        Raises:
            DataError: It does not override `solution`.
        """
        if type(self).solution is Task.solution:
            raise DataError(
                f"task {self.name} says no solutions, which model.objective next_token trains on; train with "
                "model.objective reinforce, or give the task a method solution(example) (docs/tasks.md)"
            )

    def check_rows(self) -> None:  # most rows are opened with the datamodule
        """Refuse rows that the task's own options name, before any heavy library is imported.

        Raises:
            DataError: They cannot be used.
        """

    def check_split(self, split: str) -> None:
        """Refuse a split that the task does not have.

        Raises:
            DataError: With those that it has.
        """
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}; its splits are {', '.join(self.splits)}")
