"""A worker that compares answers with sympy: `python -m transformer2.verifiers.math.worker`.

Expressions are compared by value first: at 100 digits, more than an answer may have, at fixed points when they have
variables. This decides in milliseconds where symbolic simplification may take minutes. What cannot be evaluated goes to
math-verify's `verify`. The owner kills a worker that takes too long.
"""

from __future__ import annotations

import json
import logging
import random
import re
import resource
import sys
from typing import Any

from transformer2.verifiers._serve import Channel, serve

CHANNEL = Channel() if __name__ == "__main__" else None  # before the imports below can print

import sympy  # noqa: E402
from latex2sympy2_extended import latex2sympy  # noqa: E402
from math_verify import verify  # noqa: E402

from transformer2.verifiers.math.parts import equal  # noqa: E402
from transformer2.verifiers.math.scalars import compare_as_written  # noqa: E402

MEMORY = 2 << 30  # bytes of address space: a huge number ends in a MemoryError here, not in the machine's
DIGITS = 100
LARGEST = sympy.Integer(10) ** 60
NUM_POINTS = 3


def main() -> None:
    """Serve comparisons."""
    sys.setrecursionlimit(3_000)  # more than 16 levels of brackets take the parser, less than the stack holds
    logging.disable(logging.CRITICAL)  # math-verify explains itself at length
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    read("x+1")  # the parser builds its tables on first use
    serve(compare, channel=CHANNEL)


def compare(request: bytes) -> bytes:
    """Whether two answers, JSON strings in normal form, are equal."""
    gold, answer = json.loads(request)
    return b"equal" if equal(gold, answer, _leaf) else b"different"


def _leaf(gold: str, answer: str) -> bool:
    found = compare_as_written(gold, answer)
    if found is not None:
        return found
    try:
        return _same(read(gold), read(answer))
    except Exception:  # sympy and the parser raise anything; what cannot be read is not equal
        return False


def read(text: str) -> Any:
    """A sympy expression or relation."""
    text = re.sub(r"\^\{\\circ\}", r"\\cdot\\frac{\\pi}{180}", text)
    text = re.sub(r"(?<![\d}])(\d+)\\frac\{(\d+)\}\{(\d+)\}", _mixed, text)
    text = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    return latex2sympy(text)


def _mixed(match: re.Match[str]) -> str:
    """A mixed number: 1 3/4 is 7/4, not 1 times 3/4."""
    whole, top, bottom = map(int, match.groups())
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"


def _same(gold: Any, answer: Any) -> bool:
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        # The same equation, up to a factor.
        sides = [(_at(gold.lhs - gold.rhs, p), _at(answer.lhs - answer.rhs, p)) for p in range(NUM_POINTS)]
        if all(a is not None and b is not None for a, b in sides):
            (a0, b0), *rest = sides
            return a0 != 0 and b0 != 0 and all(_close(a * b0, b * a0) for a, b in rest)
    elif isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        exact = gold.doit(), answer.doit()
        if all(value.is_Rational for value in exact):
            return bool(exact[0] == exact[1])
        points = range(NUM_POINTS if gold.free_symbols | answer.free_symbols else 1)
        values = [(_at(gold, p), _at(answer, p)) for p in points]
        if all(a is not None and b is not None for a, b in values):
            return all(_close(a, b) for a, b in values)
    elif isinstance(gold, sympy.Eq) or isinstance(answer, sympy.Eq):
        return False
    return bool(verify(gold, answer, timeout_seconds=None))


def _at(expression: Any, point: int) -> Any:
    """The value where the variables are fixed fractions without a pattern; None when it has none."""
    places = {name: _fraction(f"{point} {name}") for name in expression.free_symbols}
    value = expression.subs(places).evalf(DIGITS)
    return value if value.is_number and value.is_finite else None


def _fraction(seed: str) -> sympy.Rational:
    return sympy.Rational(random.Random(seed).randint(10**6, 3 * 10**6), 1_000_003)


def _close(a: Any, b: Any) -> bool:
    """Equal in all but the last ten digits; with an exact 0, when nothing is left in that many places.

    Of numbers so large that their digits before the point are not all there, nothing is said.
    """
    scale = max(abs(a), abs(b)) if a != 0 and b != 0 else 1
    return bool(scale < LARGEST and abs(a - b) < scale * sympy.Float(10, DIGITS) ** (10 - DIGITS))


if __name__ == "__main__":
    main()
