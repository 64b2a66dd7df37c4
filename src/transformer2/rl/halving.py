"""Out of memory: the same rows in halves, quarters, ... until they fit.

Rollouts and losses are sums over rows, and a row's randomness depends on (seed, row) only, so halves give what the
whole would have given, up to the rounding of batched matrix products.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from transformer2.errors import UserError

__all__ = ["run_or_halve"]

Rows = TypeVar("Rows", list[int], Tensor)

# torch raises OutOfMemoryError for its own allocator on CUDA and HIP; other libraries and devices only say so.
_WORDS = re.compile(r"out.of.(\w+.)?memory|ALLOC_FAILED|allocate.memory", re.IGNORECASE)


def run_or_halve(run: Callable[[Rows], object], rows: Rows, undo: Callable[[], None], remedy: str) -> int:
    """Run on all rows or, where memory does not suffice, on as many at a time as fit.

    Args:
        run: The work on some rows.
        rows: Row indices, a list or an int64 tensor.
        undo: Takes back what the `run`s so far did.
        remedy: What to change in the config, for the note and the error.

    Returns:
        Rows at a time: `len(rows)`, or the half, quarter, ... that fits.

    Raises:
        UserError: One row does not fit. What was done has been undone.
    """
    size = len(rows)
    while not all(_fits(run, rows[i : i + size]) for i in range(0, len(rows), size)):
        undo()
        if size == 1:
            raise UserError(f"out of memory with 1 row at a time; {remedy} (`transformer2 plan` says what fits)")
        half = -(-size // 2)
        warnings.warn(
            f"out of memory with {size} rows: going on with {half} at a time; to begin with less, {remedy}",
            stacklevel=2,
        )
        size = half
    return size


def _fits(run: Callable[[Rows], object], rows: Rows) -> bool:
    try:
        run(rows)
        return True
    except (RuntimeError, MemoryError) as e:
        if not isinstance(e, torch.OutOfMemoryError | MemoryError) and not _WORDS.search(str(e)):
            raise
    # Outside of the handler: while the exception lives, its traceback keeps the tensors of the failed attempt.
    getattr(torch.get_device_module(), "empty_cache", lambda: None)()
    return False
