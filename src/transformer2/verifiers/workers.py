"""Any task's `verify` in warm worker processes: what raises, hangs or kills its process costs one verdict, not the run.

The workers import the task's module (with this process's import path) and get the task itself by pickle, so what its
constructor was given holds there too; what is changed on the class later does not reach them.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import tempfile
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformer2.errors import UserError
from transformer2.sandbox.pool import Lost, WorkerPool, serve
from transformer2.sandbox.python import python_worker
from transformer2.types import Example, Verdict
from transformer2.verifiers.base import Verifier, attempt

__all__ = ["batch_deadline", "start_workers", "verify_in_workers"]

MAX_POOLS = 2  # tasks whose workers are kept warm
START_SECONDS = 120.0  # a task's module may import much


def verify_in_workers(
    task: Verifier, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
) -> list[Verdict]:
    """Verdicts of `task.verify`, each within `task.verify_seconds`, all within `deadline` (or `batch_deadline`).

    Raises:
        UserError: The task cannot be sent to other processes.
        PoolError: They cannot be started, or die again and again.
    """
    pool = _pool(task)
    requests = [pickle.dumps(pair) for pair in zip(examples, completions, strict=True)]
    limit = batch_deadline(len(requests), task.verify_seconds, pool.size) if deadline is None else deadline
    answers = pool.map(requests, task.verify_seconds, limit)
    return [Verdict.failed(f"verifier: {a.value}") if isinstance(a, Lost) else pickle.loads(a) for a in answers]


def start_workers(task: Verifier) -> None:
    """Start the workers of a task without waiting for them.

    Raises:
        UserError: The task cannot be sent to other processes.
    """
    _pool(task).start()


def batch_deadline(n: int, seconds: float, workers: int) -> float:
    """Seconds for a batch of n answers: twice what it takes when every one of them runs over its time, 60 at least."""
    return max(60.0, 2 * n * seconds / workers)


def main() -> None:
    """A worker: read the task that the owner pickled, then serve."""
    task = pickle.loads(Path(sys.argv[1]).read_bytes())
    serve(lambda request: pickle.dumps(attempt(task, *pickle.loads(request))))


def _pool(task: Verifier) -> WorkerPool:
    """The workers of this task, as it is now."""
    name = type(task).__name__
    if type(task).__module__ == "__main__":
        raise UserError(
            f"task {name} is defined in the script that runs, which its verifying processes cannot import; move it "
            'into a module of its own (docs/tasks.md), or declare `verify_in = "inline"`'
        )
    try:
        state = pickle.dumps(task)
    except Exception as e:  # whatever __reduce__ raises
        raise UserError(
            f"task {name} cannot be pickled ({e}), so it cannot be verified in processes of its own; keep open files "
            'and the like out of it, or declare `verify_in = "inline"`'
        ) from e
    return _pool_of(state, tuple(sys.path))


@lru_cache(maxsize=MAX_POOLS)
def _pool_of(state: bytes, path: tuple[str, ...]) -> WorkerPool:
    # Read before a worker says that it is ready, so that imports do not count as somebody's answer.
    file = tempfile.NamedTemporaryFile(suffix=".task")  # noqa: SIM115  # lives as long as its pool
    file.write(state)
    file.flush()
    command, env = python_worker("transformer2.verifiers.workers", file.name)
    pool = WorkerPool(command, env=env, start_seconds=START_SECONDS)
    weakref.finalize(pool, file.close)
    return pool


def _read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(items)


# Examples are made of read-only mappings, which pickle does not know by itself.
copyreg.pickle(MappingProxyType, lambda proxy: (_read_only, (dict(proxy),)))
