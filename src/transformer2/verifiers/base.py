"""What a task says of its verdicts: how one is made, and where."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, get_args

from transformer2.errors import ConfigError
from transformer2.sandbox import Program
from transformer2.types import Example, Verdict

__all__ = ["Verifier", "attempt", "checked"]

Where = Literal["inline", "workers", "sandbox"]


class Verifier(ABC):
    """The half of a task that verifies; `verifiers.verify_all` runs it.

    Attributes:
        name: The name in configs, example ids and messages.
        verify_in: Where verdicts are made. `workers`: `verify`, in warm processes that are killed when it hangs.
            `inline`: `verify`, in the trainer's process; only where it ends within milliseconds on any text, with a
            reason in the docstring: one that hangs there holds the run up for ever. `sandbox`: what `program` finds is
            run in the sandbox. A task whose options decide it sets it in its constructor.
        verify_seconds: Wall-clock seconds that `verify` may take for one answer in a worker.
        verify_many: Verifies whole batches itself, `(examples, completions, deadline) -> verdicts`: called in
            the trainer's process, wherever `verify_in` says; None for most tasks.
        allow_unsafe_code_execution: Whether programs run even where this system cannot isolate them.
    """

    name: ClassVar[str]
    verify_in: Where = "workers"
    verify_seconds: ClassVar[float] = 5.0
    verify_many: Callable[[Sequence[Example], Sequence[str], float | None], list[Verdict]] | None = None
    allow_unsafe_code_execution: bool = False

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "bounded"):
            raise ConfigError(f'task {cls.__name__}: `bounded = True` is now `verify_in = "inline"`')
        if cls.verify_in not in get_args(Where):
            raise ConfigError(f"task {cls.__name__}: verify_in is {cls.verify_in!r}; use {', '.join(get_args(Where))}")

    @abstractmethod
    def verify(self, example: Example, completion: str) -> Verdict:
        """The verdict on one completion: +1 right, -1 wrong. A pure function of its arguments."""

    def program(self, example: Example, completion: str) -> Program | None:
        """The program in a completion, with the tests that it has to pass; None when there is none, which is wrong."""
        raise NotImplementedError

    def warm_up(self) -> None:  # noqa: B027  # most tasks have nothing to start
        """Start what `verify_many` needs while the model loads."""


def attempt(task: Verifier, example: Example, completion: str) -> Verdict:
    """The task's verdict, or why there is none."""
    try:
        return checked(task.verify(example, completion))
    except Exception as e:
        return Verdict.failed(f"verifier raised {type(e).__name__}: {e}")


def checked(verdict: object) -> Verdict:
    """The verdict if its reward is finite or None and its score one, else a failure that says what came instead."""
    if isinstance(verdict, Verdict):
        reward: object = verdict.reward
        score: object = verdict.score
        scored = score is None or (isinstance(score, int | float) and 0 <= score <= 1)
        finite = isinstance(reward, int | float) and math.isfinite(reward) and not verdict.abstained
        if scored and (reward is None or finite):
            return verdict
    return Verdict.failed(f"verifier returned {verdict!r}"[:200])
