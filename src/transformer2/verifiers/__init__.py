"""Verifiers: from a completion's text to a verdict. `verify_all` is the edge where a verifier's failure is caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformer2.errors import UserError
from transformer2.types import Example, Verdict
from transformer2.verifiers.isolated import checked, failed
from transformer2.verifiers.pool import PoolError

if TYPE_CHECKING:
    from transformer2.tasks.base import Task

__all__ = ["stop_if_unverified", "verify_all"]

MAX_FAILED_SHARE = 0.05


def verify_all(
    task: Task, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
) -> list[Verdict]:
    """One verdict per completion, in order.

    A verifier that raises, hangs, or returns anything but a verdict with a finite reward gives reward None: the row is
    left out of the update and counted. A failure is never a reward.

    Args:
        task: Whose `verify_many` judges.
        examples: The questions.
        completions: The answers, one for each question.
        deadline: Seconds for the whole batch; None takes the task's own.

    Raises:
        UserError: The processes that verify cannot be started, or die again and again.
    """
    if len(examples) != len(completions):
        raise ValueError(f"{len(completions)} completions for {len(examples)} examples")
    try:
        verdicts = task.verify_many(examples, completions, deadline)
    except UserError:
        raise
    except PoolError as e:
        raise UserError(f"answers of {task.name} cannot be verified: {e}; its own words are above, on stderr") from e
    except Exception as e:
        return [failed(f"verify_many raised {type(e).__name__}: {e}")] * len(examples)
    if not isinstance(verdicts, list) or len(verdicts) != len(examples):
        found = f"{len(verdicts)} verdicts" if isinstance(verdicts, list) else type(verdicts).__name__
        return [failed(f"verify_many returned {found} for {len(examples)} answers")] * len(examples)
    return [checked(verdict) for verdict in verdicts]


def stop_if_unverified(verdicts: Sequence[Verdict]) -> None:
    """End the run when too many answers of a batch could not be judged: the rest would be noise, or a wrong score.

    An abstention is no failure.

    Raises:
        UserError: Over 5 % of them; the message says why the first one failed.
    """
    reasons = [v.reason for v in verdicts if v.reward is None and not v.abstained]
    if len(reasons) > MAX_FAILED_SHARE * len(verdicts):
        raise UserError(
            f"{len(reasons)} of {len(verdicts)} answers could not be verified ({reasons[0]}); "
            "mend the task's verifier: training on the rest would teach noise, and its score would mean nothing"
        )
