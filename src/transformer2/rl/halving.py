"""Out of memory: the same rows in two halves, once.

Rollouts and losses are sums over rows, and a row's randomness depends on (seed, row) only, so halves give what the
whole would have given, up to the rounding of batched matrix products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from transformer2.errors import UserError

__all__ = ["run_or_halve"]

Rows = TypeVar("Rows", list[int], Tensor)

# What torch's CPU allocator says; on accelerators it raises OutOfMemoryError.
_CPU_WORDS = "DefaultCPUAllocator"


def run_or_halve(run: Callable[[Rows], object], rows: Rows, undo: Callable[[], None], remedy: str) -> bool:
    """Run on all rows or, where memory does not suffice, on each half.

    Args:
        run: The work on some rows.
        rows: Row indices, a list or an int64 tensor.
        undo: Takes back what a failed `run` did before it failed.
        remedy: What to change in the config, for the note and the error.

    Returns:
        Whether the rows had to be halved.

    Raises:
        UserError: A half does not fit either, or there is only one row. What was done has been undone.
    """
    if _fits(run, rows):
        return False
    undo()
    middle = -(-len(rows) // 2)
    if len(rows) > 1:
        warnings.warn(
            f"out of memory with {len(rows)} rows: going on with {middle} at a time; to begin with less, {remedy}",
            stacklevel=2,
        )
        if all(_fits(run, part) for part in (rows[:middle], rows[middle:])):
            return True
        undo()
    raise UserError(
        f"out of memory with {middle} row{'s' * (middle > 1)} at a time; {remedy} (`transformer2 plan` says what fits)"
    )


def _fits(run: Callable[[Rows], object], rows: Rows) -> bool:
    try:
        run(rows)
        return True
    except RuntimeError as e:
        if not isinstance(e, torch.OutOfMemoryError) and _CPU_WORDS not in str(e):
            raise
    # Outside of the handler: while the exception lives, its traceback keeps the tensors of the failed attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
