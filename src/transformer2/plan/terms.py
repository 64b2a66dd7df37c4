"""A line of arithmetic that can be checked: a formula, its numbers, its value.

The value is computed from the printed formula, so what `transformer2 plan --explain` shows is what was added up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Term", "readable", "total"]

_FUNCTIONS = {"min": min, "max": max}


@dataclass(frozen=True)
class Term:
    """One summand.

    Attributes:
        part: Which part of the memory (or of a step's seconds) it belongs to: `weights`, `basis`, `activations`, ...
        formula: A Python expression of names and numbers. Formulas are constants of this package, never input.
        numbers: The value of every name.
        note: What it stands for, in a few words.
    """

    part: str
    formula: str
    numbers: Mapping[str, float]
    note: str = ""

    @property
    def value(self) -> float:
        """The formula's value."""
        return float(eval(self.formula, {"__builtins__": {}}, {**_FUNCTIONS, **self.numbers}))

    def explain(self, unit: str = "GB", scale: float = 1e9) -> str:
        """`part: formula = numbers = value unit   (note)`."""
        filled = re.sub(r"[A-Za-z_]\w*", lambda m: readable(self.numbers.get(m[0], m[0])), self.formula)
        note = f"   ({self.note})" if self.note else ""
        return f"{self.part}: {self.formula} = {filled} = {self.value / scale:.3g} {unit}{note}"


def total(terms: Iterable[Term]) -> float:
    """The sum of their values."""
    return sum(term.value for term in terms)


def readable(number: float | str) -> str:
    """A number as short as it can be told: 4096, 0.5625, 8.03e9."""
    if isinstance(number, str):
        return number
    if float(number).is_integer() and abs(number) < 1e6:
        return str(int(number))
    mantissa, _, exponent = f"{number:.4e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if abs(number) >= 1e6 else f"{number:.4g}"
