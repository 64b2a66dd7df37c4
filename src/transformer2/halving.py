"""Out of memory: the same rows in halves, quarters, ... until they fit.

Rollouts, losses and likelihoods are made row by row, and a row's randomness depends on (seed, row) only, so halves give
what the whole would have given, up to the rounding of batched matrix products.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from transformer2.errors import UserError

__all__ = ["is_out_of_memory", "run_or_halve"]

Rows = TypeVar("Rows", list[int], Tensor)
Result = TypeVar("Result")

# torch raises OutOfMemoryError for its own allocator on CUDA and HIP; other libraries and devices only say so.
_WORDS = re.compile(r"out.of.(\w+.)?memory|ALLOC_FAILED|allocate.memory", re.IGNORECASE)


def run_or_halve(
    run: Callable[[Rows], Result], rows: Rows, remedy: str, at_once: int | None = None
) -> tuple[list[Result], int | None]:
    """Run on all rows or, where memory does not suffice, on as many at a time as fit.

    Args:
        run: The work on some rows; what it did before it ran out of memory does not matter.
        rows: Row indices, a list or an int64 tensor.
        remedy: What to change in the config, for the note and the error.
        at_once: Rows to begin with; None tries all.

    Returns:
        The results of the parts in order, and the rows that fit, where those to begin with did not.

    Raises:
        UserError: One row does not fit.
    """
    size, fitting, done, results = at_once or len(rows), None, 0, []
    while done < len(rows):
        part = rows[done : done + size]
        if result := _attempt(run, part):
            results += result
            done += len(part)
            continue
        if len(part) == 1:
            raise UserError(f"out of memory with 1 row at a time; {remedy} (`transformer2 plan` says what fits)")
        size = fitting = -(-len(part) // 2)
        warnings.warn(
            f"out of memory with {len(part)} rows: continuing with {size} at a time; to begin with less, {remedy}",
            stacklevel=2,
        )
    return results, fitting


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, in whatever words the device says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_WORDS.search(str(error)))


def _attempt(run: Callable[[Rows], Result], rows: Rows) -> list[Result]:
    """The result alone in a list; an empty one where memory does not suffice."""
    try:
        return [run(rows)]
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
    # Outside of the handler: while the exception lives, its traceback keeps the tensors of the failed attempt.
    getattr(torch.get_device_module(), "empty_cache", lambda: None)()
    return []
