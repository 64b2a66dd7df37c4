"""A worker that compares answers part by part and by value.

The owner kills a worker that takes too long.
"""

from __future__ import annotations

import json
import resource
import sys

from transformer2.sandbox.pool import serve
from transformer2.verifiers.math.expression import same
from transformer2.verifiers.math.parts import equal
from transformer2.verifiers.math.scalars import compare_scalars

MEMORY = 2 << 30  # bytes of address space: a huge number ends in a MemoryError here, not in the machine's


def main() -> None:
    """Serve comparisons."""
    sys.setrecursionlimit(3_000)  # more than 16 levels of brackets take the reader, less than the stack holds
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(compare)


def compare(request: bytes) -> bytes:
    """Whether two answers, JSON strings in normal form, are equal."""
    gold, answer = json.loads(request)
    return b"equal" if equal(gold, answer, _leaf) else b"different"


def _leaf(gold: str, answer: str) -> bool | None:
    return compare_scalars(gold, answer, _same)


def _same(gold: str, answer: str) -> bool:
    try:
        return same(gold, answer)
    except Exception:  # whatever the reader and mpmath raise: what cannot be read is not equal
        return False
