"""What callbacks need of a module: more than a LightningModule has, less than one class of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transformer2.adaptation.answerer import Answerer
from transformer2.module.alarms import Alarms
from transformer2.tasks import Task
from transformer2.types import Answer, Example


class HasPolicy(Protocol):
    """A LightningModule around a PEFT model that answers the prompts of a task.

    Attributes:
        policy: The model with its adapters; the one that is trained is called `default`.
        alarms: What is wrong with the training.
        validated: Questions and answers of the last validation.
    """

    policy: Any
    alarms: Alarms
    validated: Sequence[tuple[Example, Answer]]

    @property
    def task(self) -> Task:
        """What is trained."""
        ...

    def answerer(self, task: Task | None = None) -> Answerer:
        """The policy as what answers a task's prompts; None takes the module's own task."""
        ...
