"""Out of memory in the middle: halves until it fits; what failed leaves no result; the remedy is named."""

import pytest
import torch

from transformer2.errors import UserError
from transformer2.halving import run_or_halve


class Worker:
    """Returns its rows, and runs out of memory above `limit` of them."""

    def __init__(self, limit: int, error: Exception | None = None):
        self.limit = limit
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, rows):
        if len(rows) > self.limit:
            raise self.error
        return rows


def test_enough_memory_runs_once():
    assert run_or_halve(Worker(8), [1, 2, 3], "") == ([[1, 2, 3]], None)


@pytest.mark.parametrize(("rows", "limit", "size"), [(5, 3, 3), (16, 2, 2), (16, 1, 1), (7, 1, 1)])
def test_parts_do_what_the_whole_would_have_done(rows, limit, size):
    rows = list(range(rows))
    with pytest.warns(UserWarning, match=rf"out of memory with {len(rows)} rows: continuing with .* a time.*lower x"):
        results, found = run_or_halve(Worker(limit), rows, "lower x")
    assert [row for part in results for row in part] == rows and found == size


def test_what_fitted_is_not_run_again():
    calls = []

    def worker(rows):
        calls.append(rows)
        if len(calls) == 2:  # others took the memory meanwhile
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    with pytest.warns(UserWarning, match="with 4 rows: continuing with 2"):
        results, size = run_or_halve(worker, list(range(8)), "", at_once=4)
    assert results == [[0, 1, 2, 3], [4, 5], [6, 7]] and size == 2


def test_one_row_that_does_not_fit_is_a_clear_error():
    with pytest.warns(UserWarning), pytest.raises(UserError, match="1 row at a time; lower x"):
        run_or_halve(Worker(0), [1, 2, 3, 4, 5], "lower x")
    with pytest.raises(UserError, match="1 row at a time"):
        run_or_halve(Worker(0), [7], "lower x")


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
    with pytest.warns(UserWarning):
        assert run_or_halve(Worker(1, error), [1, 2], "") == ([[1], [2]], 1)


@pytest.mark.parametrize(
    "words", ["shape mismatch", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "device-side assert"]
)
def test_other_errors_are_not_taken_for_memory(words):
    with pytest.raises(RuntimeError, match=words):
        run_or_halve(Worker(1, RuntimeError(words)), [1, 2], "")
