"""Out of memory in the middle: halves, once; what failed is undone; the remedy is named."""

import pytest
import torch

from transformer2.errors import UserError
from transformer2.rl.halving import run_or_halve


class Worker:
    """Adds row numbers up, and runs out of memory above `limit` rows after it has begun."""

    def __init__(self, limit: int, error: Exception | None = None):
        self.limit, self.done = limit, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, rows) -> None:
        self.done += rows[:1]
        if len(rows) > self.limit:
            raise self.error
        self.done += rows[1:]

    def undo(self) -> None:
        self.done.clear()


def test_enough_memory_runs_once():
    worker = Worker(8)
    assert not run_or_halve(worker, [1, 2, 3], worker.undo, "")
    assert worker.done == [1, 2, 3]


def test_halves_do_what_the_whole_would_have_done():
    worker = Worker(3)
    with pytest.warns(UserWarning, match="out of memory with 5 rows: going on with 3 at a time.*lower x"):
        assert run_or_halve(worker, [1, 2, 3, 4, 5], worker.undo, "lower x")
    assert worker.done == [1, 2, 3, 4, 5]


def test_a_half_that_does_not_fit_either_is_a_clear_error():
    worker = Worker(1)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="3 rows at a time; lower x"):
        run_or_halve(worker, [1, 2, 3, 4, 5], worker.undo, "lower x")
    assert worker.done == []
    with pytest.raises(UserError, match="1 row at a time"):
        run_or_halve(Worker(0), [7], worker.undo, "lower x")


def test_the_cpu_allocator_s_error_counts_and_no_other():
    cpu = Worker(1, RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"))
    with pytest.warns(UserWarning):
        assert run_or_halve(cpu, [1, 2], cpu.undo, "")
    with pytest.raises(RuntimeError, match="shape"):
        run_or_halve(Worker(1, RuntimeError("shape mismatch")), [1, 2], list, "")
