"""What callbacks need of a module: more than a LightningModule has, less than one class of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import lightning as L

from transformer2.adaptation.answerer import Answerer
from transformer2.errors import ConfigError
from transformer2.tasks import Task
from transformer2.types import Answer, Example


class HasPolicy(Protocol):
    """A LightningModule around a PEFT model that answers the prompts of a task.

    Attributes:
        policy: The model with its adapters; the one that is trained is called `default`.
        alarms: What is wrong with the training; `alarms.collapse.current_signs` names the signs of a collapse.
        curve: The learning curve; `curve.validations` counts the validations of the run.
        validated: Questions and answers of the last validation.
    """

    policy: Any
    alarms: Any
    curve: Any
    validated: Sequence[tuple[Example, Answer]]

    @property
    def task(self) -> Task:
        """What is trained."""
        ...

    def answerer(self, task: Task | None = None) -> Answerer:
        """The policy as what answers a task's prompts; None takes the module's own task."""
        ...


# Not by isinstance, which from Python 3.12 on does not see what torch keeps in a module's `_modules`, such as a policy.
MEMBERS = ("policy", "alarms", "curve", "validated", "task", "answerer")


class NeedsPolicy(L.Callback):
    """A callback that works on the policy of the module."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module without a policy."""
        super().setup(trainer, pl_module, stage)
        check_policy(self, pl_module, stage)


def check_policy(callback: L.Callback, module: L.LightningModule, stage: str) -> None:
    """Refuse, in a callback's `setup`, a module that it would fail on in the middle of a run.

    Raises:
        ConfigError: The module is no `HasPolicy`.
    """
    if stage == "fit" and not all(hasattr(module, name) for name in MEMBERS):
        raise ConfigError(
            f"{type(callback).__name__} needs a module with a policy and a task, such as SVFReinforceModule with an "
            f"ExpertDataModule, not {type(module).__name__}; leave the callback out"
        )
