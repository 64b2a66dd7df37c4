"""A worker that compares answers part by part and by value: `python -m transformer2.verifiers.math.worker`.

The owner kills a worker that takes too long.
"""

from __future__ import annotations

import json
import resource
import sys

from transformer2.verifiers._serve import Channel, serve

CHANNEL = Channel() if __name__ == "__main__" else None  # before the imports below can print

from transformer2.verifiers.math.expression import same  # noqa: E402
from transformer2.verifiers.math.parts import equal  # noqa: E402
from transformer2.verifiers.math.scalars import compare_scalars  # noqa: E402

MEMORY = 2 << 30  # bytes of address space: a huge number ends in a MemoryError here, not in the machine's


def main() -> None:
    """Serve comparisons."""
    sys.setrecursionlimit(3_000)  # more than 16 levels of brackets take the reader, less than the stack holds
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(compare, channel=CHANNEL)


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


if __name__ == "__main__":
    main()
