"""Any task's `verify` in warm worker processes: what raises, hangs or kills its process costs one verdict, not the run.

The workers import the task's module (with this process's import path) and get the task itself by pickle, so what its
constructor was given holds there too; what is changed on the class later does not reach them.
"""

from __future__ import annotations

import copyreg
import io
import math
import pickle
import tempfile
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformer2.errors import UserError
from transformer2.types import Example, Verdict
from transformer2.verifiers.pool import Lost, WarmPool, python_worker

if TYPE_CHECKING:
    from transformer2.tasks.base import Task

__all__ = ["attempt", "batch_deadline", "checked", "failed", "start_workers", "verify_in_workers"]

MAX_POOLS = 2  # tasks whose workers are kept warm
START_SECONDS = 120.0  # a task's module may import much


def verify_in_workers(
    task: Task, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
) -> list[Verdict]:
    """Verdicts of `task.verify`, each within `task.verify_seconds`.

    Args:
        task: A picklable task of an importable module.
        examples: The questions.
        completions: The answers.
        deadline: Seconds for the whole batch; None takes `batch_deadline`.

    Raises:
        UserError: The task cannot be sent to other processes.
        PoolError: They cannot be started, or die again and again.
    """
    pool = _pool(task)
    requests = [_dumps((example, text)) for example, text in zip(examples, completions, strict=True)]
    limit = batch_deadline(len(requests), task.verify_seconds, pool.size) if deadline is None else deadline
    answers = pool.map(requests, task.verify_seconds, limit)
    return [failed(f"verifier: {a.value}") if isinstance(a, Lost) else checked(pickle.loads(a)) for a in answers]


def start_workers(task: Task) -> None:
    """Start the workers of a task without waiting for them.

    Raises:
        UserError: The task cannot be sent to other processes.
    """
    _pool(task).start()


def batch_deadline(n: int, seconds: float, workers: int) -> float:
    """Seconds for a batch of n answers: twice what it takes when every one of them runs over its time, 60 at least."""
    return max(60.0, 2 * n * seconds / workers)


def attempt(task: Task, example: Example, completion: str) -> Verdict:
    """The task's verdict, or why there is none."""
    try:
        return checked(task.verify(example, completion))
    except Exception as e:
        return failed(f"verifier raised {type(e).__name__}: {e}")


def checked(verdict: object) -> Verdict:
    """The verdict if it is one with a finite reward (or with None), else a failure that says what came instead."""
    if isinstance(verdict, Verdict) and (
        verdict.reward is None or (_is_finite(verdict.reward) and not verdict.abstained)
    ):
        return verdict
    return failed(f"verifier returned {verdict!r}"[:200])


def failed(reason: str) -> Verdict:
    """A verdict that says nothing on the answer: an infra error."""
    return Verdict(None, False, None, reason)


def _is_finite(reward: object) -> bool:
    return isinstance(reward, (int, float)) and math.isfinite(reward)


_pools: dict[tuple[bytes, str], tuple[WarmPool, Any]] = {}


def _pool(task: Task) -> WarmPool:
    """The workers of this task, as it is now."""
    if type(task).__module__ == "__main__":
        raise UserError(
            f"task {type(task).__name__} is defined in the script that runs, which its verifying processes cannot "
            "import; move it into a module of its own (docs/tasks.md), or declare it `bounded`"
        )
    try:
        state = _dumps(task)
    except Exception as e:  # whatever __reduce__ raises
        raise UserError(
            f"task {type(task).__name__} cannot be pickled ({e}), so it cannot be verified in processes of its own; "
            "keep open files and the like out of it, or declare it `bounded`"
        ) from e
    command, env = python_worker("transformer2.verifiers._task_worker")
    key = (state, env["PYTHONPATH"])
    if key not in _pools:
        while len(_pools) >= MAX_POOLS:
            pool, _ = _pools.pop(next(iter(_pools)))
            pool.close()
        # Read before a worker says that it is ready, so that imports do not count as somebody's answer.
        file = tempfile.NamedTemporaryFile(suffix=".task")  # noqa: SIM115  # lives as long as its pool
        file.write(state)
        file.flush()
        _pools[key] = WarmPool([*command, file.name], env=env, start_seconds=START_SECONDS), file
    return _pools[key][0]


def _dumps(value: object) -> bytes:
    """Pickle that knows read-only mappings, which examples are made of."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[MappingProxyType] = lambda proxy: (_read_only, (dict(proxy),))
    pickler.dump(value)
    return buffer.getvalue()


def _read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(items)
