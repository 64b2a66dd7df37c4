"""Running code that a model wrote, and believing only what can be checked. Nothing of tasks, nothing of torch.

    Sandbox().run([Program(code, tests, names)]) -> [Outcome]

How it is built, from the outside in: a pool (`pool.py`) of warm judges (`judge.py`), each with a zygote that forks
candidates (`zygote.py`) behind isolation layers (`jail.py`, `seccomp.py`, `landlock.py`); a candidate (`candidate.py`)
answers questions in plain data (`values.py`) that a checker (`checker.py`), in another process, asks for the tests.
What a judge tries before it takes work is in `selftest.py`.

Linux with seccomp filters and Landlock (5.13 or newer), x86-64 or aarch64. Elsewhere it refuses, unless told otherwise.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from transformer2.errors import SandboxError
from transformer2.sandbox.pool import Lost, PoolError, WorkerPool
from transformer2.sandbox.program import SLACK, Outcome, Program
from transformer2.sandbox.python import isolated_python

__all__ = ["Outcome", "Program", "Sandbox", "shared"]


class Sandbox:
    """Judges that run programs side by side.

    Args:
        allow_unsafe: Run programs although this system lacks seccomp filters or Landlock. They could then read and
            change whatever this user can.
        size: Judges; None takes the cores that this process may use.
    """

    def __init__(self, allow_unsafe: bool = False, size: int | None = None) -> None:
        self.allow_unsafe = allow_unsafe
        self.pool = WorkerPool(isolated_python("judge", allow_unsafe), size, env=_environment(), start_seconds=60)
        self._checked: Mapping[str, Any] | None = None

    def check(self) -> Mapping[str, Any]:
        """What the first judge found: `level`, `missing` layers, `failed` self-tests, `refused`, `controls`, `probes`.

        Raises:
            SandboxError: No judge can be started.
        """
        if self._checked is None:
            try:
                (found,) = self.pool.map([b""], seconds=60)
            except PoolError as e:
                raise SandboxError(f"the sandbox cannot be started: {e}") from e
            if isinstance(found, Lost):
                raise SandboxError(f"the sandbox cannot be started: its judge {found.value}")
            self._checked = json.loads(found)
        return self._checked

    @property
    def level(self) -> str:
        """Isolation reached, for reports: `full`, `no-namespaces`, or `unsafe` and what it lacks."""
        found = self.check()
        level, missing = str(found["level"]), ", ".join(found["missing"])
        return f"{level} (no {missing})" if missing else level

    def require(self) -> None:
        """Refuse where programs could do harm, or where right ones would fail.

        Raises:
            SandboxError: A required layer is missing, or the self-test failed; the message says which.
        """
        found = self.check()
        failed, missing = "; ".join(found["failed"]), ", ".join(found["missing"])
        if found["refused"]:
            why = f"its self-test failed: {failed}" if failed else f"this system lacks {missing}"
            raise SandboxError(
                f"model-written code is not run here: {why}; `transformer2 sandbox check` says more "
                "(data.task_options.allow_unsafe_code_execution: true runs it all the same, at your own risk)"
            )
        if found["level"] == "unsafe":
            warnings.warn(
                f"MODEL-WRITTEN CODE RUNS UNPROTECTED: {'; '.join([self.level, *found['failed']])}", stacklevel=2
            )

    def run(self, programs: Sequence[Program], deadline: float | None = None) -> list[Outcome]:
        """Outcomes, in the order of the programs.

        Args:
            programs: What to run.
            deadline: Seconds after which what has no outcome is an infra error; None waits.

        Raises:
            SandboxError: See `require`.
        """
        if not programs:
            return []
        self.require()
        seconds = max(p.seconds for p in programs) + 3 * SLACK
        requests = [json.dumps(asdict(p)).encode() for p in programs]
        answers = self.pool.map(requests, seconds, deadline)
        return [Outcome("infra_error", a.value) if isinstance(a, Lost) else Outcome(*json.loads(a)) for a in answers]


@cache
def shared(allow_unsafe: bool) -> Sandbox:
    """The sandbox of this process; its judges end with it."""
    return Sandbox(allow_unsafe)


def _environment() -> dict[str, str]:
    """Nothing of the user's: no tokens, no proxies, no paths.

    The same hash seed, so the same verdict, every time. One malloc arena: each reserves 64 MiB of the address space
    that a candidate may have, which would leave room for eight threads.
    """
    needed = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}  # some interpreters start only with it
    return needed | {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
