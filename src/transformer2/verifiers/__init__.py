"""Verifiers: from a completion's text to a verdict. `verify_all` runs a task's verifier where the task says.

    inline     in this process: a verifier that ends within milliseconds on any text
    workers    in warm processes that are killed when it hangs (`workers.py`)
    sandbox    the task makes a program of the completion, and `transformer2.sandbox` runs it

A verifier's failure ends here: it is not a reward, and many of them stop the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformer2.errors import UserError
from transformer2.sandbox import Sandbox, shared
from transformer2.sandbox.pool import PoolError
from transformer2.types import Example, Verdict
from transformer2.verifiers.base import Verifier, attempt, checked
from transformer2.verifiers.workers import batch_deadline, start_workers, verify_in_workers

__all__ = ["Verifier", "isolation", "stop_if_unverified", "verify_all", "warm_up"]

MAX_FAILED_SHARE = 0.05


def warm_up(task: Verifier) -> None:
    """Start what verdicts need while the model loads; called before the first row is read.

    Raises:
        UserError: Answers cannot be verified on this machine.
    """
    task.warm_up()
    if task.verify_in == "sandbox":
        box = _sandbox_of(task)
        box.pool.start()
        box.require()  # now rather than after the first rollout
    elif task.verify_in == "workers" and task.verify_many is None:
        start_workers(task)


def isolation(task: Verifier) -> str | None:
    """Level of isolation that model-written code runs under, for reports; None for tasks that run none."""
    return _sandbox_of(task).level if task.verify_in == "sandbox" else None


def verify_all(
    task: Verifier, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
) -> list[Verdict]:
    """One verdict per completion, in order.

    A verifier that raises, hangs, or returns anything but a verdict with a finite reward gives reward None: the row is
    left out of the update and counted. A failure is never a reward.

    Args:
        task: Whose verifier runs.
        examples: The questions.
        completions: The answers, one for each question.
        deadline: Seconds for the whole batch; None takes one that fits its size.

    Raises:
        UserError: The processes that verify cannot be started, or die again and again.
    """
    if len(examples) != len(completions):
        raise ValueError(f"{len(completions)} completions for {len(examples)} examples")
    try:
        verdicts = _verdicts(task, examples, completions, deadline)
    except UserError:
        raise
    except PoolError as e:
        raise UserError(f"answers of {task.name} cannot be verified: {e}; its own words are above, on stderr") from e
    except Exception as e:
        return [Verdict.failed(f"verify_many raised {type(e).__name__}: {e}")] * len(examples)
    if not isinstance(verdicts, list) or len(verdicts) != len(examples):
        found = f"{len(verdicts)} verdicts" if isinstance(verdicts, list) else type(verdicts).__name__
        return [Verdict.failed(f"verify_many returned {found} for {len(examples)} answers")] * len(examples)
    return [checked(verdict) for verdict in verdicts]


def _verdicts(task: Verifier, examples: Sequence[Example], completions: Sequence[str], deadline: float | None) -> Any:
    if task.verify_many is not None:
        return task.verify_many(examples, completions, deadline)
    if task.verify_in == "workers":
        return verify_in_workers(task, examples, completions, deadline)
    if task.verify_in == "inline":
        return [attempt(task, example, text) for example, text in zip(examples, completions, strict=True)]
    return _run_in_sandbox(task, examples, completions, deadline)


def _run_in_sandbox(
    task: Verifier, examples: Sequence[Example], completions: Sequence[str], deadline: float | None
) -> list[Verdict]:
    found = [task.program(example, text) for example, text in zip(examples, completions, strict=True)]
    programs = [program for program in found if program is not None]
    box = _sandbox_of(task)
    if deadline is None:
        seconds = max((p.seconds + p.cpu_seconds for p in programs), default=0.0)
        deadline = batch_deadline(len(programs), seconds, box.pool.size)
    outcomes = iter(box.run(programs, deadline))
    verdicts = []
    for program in found:
        if program is None:
            verdicts.append(Verdict.of(False, None, "no program"))
            continue
        outcome = next(outcomes)
        passed = outcome.outcome == "passed"
        verdict = Verdict.of(passed, program.code, outcome.reason if passed else f"{outcome.outcome}: {outcome.reason}")
        verdicts.append(replace(verdict, reward=None) if outcome.outcome == "infra_error" else verdict)
    return verdicts


def _sandbox_of(task: Verifier) -> Sandbox:
    return shared(task.allow_unsafe_code_execution)


def stop_if_unverified(verdicts: Sequence[Verdict], failed: int | None = None, total: int | None = None) -> None:
    """End the run when too many answers of a batch could not be judged: the rest would be noise, or a wrong score.

    An abstention is not a failure.

    Args:
        verdicts: This process's.
        failed: Verdicts of all processes that are failures (`Verdict.is_failure`); None counts `verdicts`.
        total: Verdicts of all processes; None counts `verdicts`.

    Raises:
        UserError: Over 5 % of them; the message says why the first one failed.
    """
    reasons = [v.reason for v in verdicts if v.is_failure]
    failed = len(reasons) if failed is None else failed
    total = len(verdicts) if total is None else total
    if failed > MAX_FAILED_SHARE * total:
        why = reasons[0] if reasons else "another process says why"
        raise UserError(
            f"{failed} of {total} answers could not be verified ({why}); "
            "fix the task's verifier: training on the rest would teach noise, and its score would mean nothing"
        )
