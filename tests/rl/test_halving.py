"""Out of memory in the middle: halves until it fits; what failed is undone; the remedy is named."""

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
    assert run_or_halve(worker, [1, 2, 3], worker.undo, "") == 3
    assert worker.done == [1, 2, 3]


@pytest.mark.parametrize(("rows", "limit", "size"), [(5, 3, 3), (16, 2, 2), (16, 1, 1), (7, 1, 1)])
def test_parts_do_what_the_whole_would_have_done(rows, limit, size):
    worker, rows = Worker(limit), list(range(rows))
    with pytest.warns(UserWarning, match=rf"out of memory with {len(rows)} rows: going on with .* at a time.*lower x"):
        assert run_or_halve(worker, rows, worker.undo, "lower x") == size
    assert worker.done == rows


def test_one_row_that_does_not_fit_is_a_clear_error():
    worker = Worker(0)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="1 row at a time; lower x"):
        run_or_halve(worker, [1, 2, 3, 4, 5], worker.undo, "lower x")
    assert worker.done == []
    with pytest.raises(UserError, match="1 row at a time"):
        run_or_halve(Worker(0), [7], worker.undo, "lower x")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.8 GB, max allowed: 18.1 GB)"),
        RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
        RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError("Unable to allocate 8.00 GiB"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_every_allocator_s_words_count(error):
    worker = Worker(1, error)
    with pytest.warns(UserWarning):
        assert run_or_halve(worker, [1, 2], worker.undo, "") == 1
    assert worker.done == [1, 2]


@pytest.mark.parametrize(
    "words", ["shape mismatch", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "device-side assert"]
)
def test_other_errors_are_not_taken_for_memory(words):
    with pytest.raises(RuntimeError, match=words):
        run_or_halve(Worker(1, RuntimeError(words)), [1, 2], list, "")
