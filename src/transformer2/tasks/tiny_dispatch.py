"""Requests to be named by category: math, code, reasoning or other. Trains the classification expert.

Example:
    user       Classify: Name the small animal: elephant A, bee B, blutik C, truck D.
    assistant  reasoning

Some kinds of "other" stand in the test split only (`transformer2.tiny.words.OTHER_HELD_OUT`; `fields["held_out"]` is
"yes").
"""

from __future__ import annotations

import random

from transformer2.tasks._tiny import TinyTask, _compare
from transformer2.tiny import words, world
from transformer2.types import Example, Verdict


class TinyDispatch(TinyTask):
    """Categories; the whole answer must be the right one. `prompt` turns any question into a dispatch question."""

    name = "tiny_dispatch"
    description = "names the category of a request"
    labels = words.LABELS
    max_new_tokens = 4

    def prompt(self, request: str) -> str:
        """The content of the user message that asks for the category of a request."""
        return self.wording.fill(question=world.dispatch_text(request))

    @staticmethod
    def label_of(task: str | None) -> str | None:
        """The category of a task's requests; None when it is none of the experts'."""
        label = (task or "").removeprefix("tiny_")
        return label if label in words.LABELS else None

    def question(self, rng: random.Random, split: str) -> world.Question:
        """Four categories equally often; half of the test split's "other" requests are of held-out kinds."""
        held_out = split == "test" and rng.random() < 0.5
        return world.dispatch_question(rng, words.OTHER_HELD_OUT if held_out else words.OTHER_KINDS)

    def example(self, question: world.Question, id: str) -> Example:
        """The answer is the category."""
        held_out = question.cells[0][2] in words.OTHER_HELD_OUT
        return self._example(question, id, question.gold(), held_out="yes" if held_out else "no")

    def verify(self, example: Example, completion: str) -> Verdict:
        """One word, one of the categories."""
        found = completion.strip()
        if found not in self.labels:
            return Verdict.of(False, None, "not a category")
        return _compare(found == example.answer, found)


TASK = TinyDispatch
