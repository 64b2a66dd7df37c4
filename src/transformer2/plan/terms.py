"""A line of arithmetic that can be checked: a formula, its numbers, its value.

A formula is a function without arguments, a lambda over the numbers around it: `lambda: s.params * b`. What
`transformer2 plan --explain` prints is read off that function's source and variables, so it is what was added up.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, reduce

__all__ = ["Term", "readable", "total"]


@dataclass(frozen=True)
class Term:
    """One summand.

    Attributes:
        part: Which part of the memory (or of a step's seconds) it belongs to: `weights`, `basis`, `activations`, ...
        formula: A lambda of names and numbers, the only one that begins on its line.
        note: What it stands for, in a few words.
    """

    part: str
    formula: Callable[[], float]
    note: str = ""

    @property
    def value(self) -> float:
        """The formula's value."""
        return float(self.formula())

    def explain(self, unit: str = "GB", scale: float = 1e9) -> str:
        """`part: formula = numbers = value unit   (note)`."""
        source = _lambdas(self.formula.__module__)[self.formula.__code__.co_firstlineno]
        around = inspect.getclosurevars(self.formula)
        numbers = {**around.builtins, **around.globals, **around.nonlocals}

        def number(name: re.Match[str]) -> str:
            root, *path = name[0].split(".")
            value = reduce(getattr, path, numbers[root])
            return name[0] if callable(value) else readable(value)

        names = r"\b[A-Za-z_][\w.]*"
        formula = re.sub(names, lambda name: name[0].rsplit(".")[-1], source)
        note = f"   ({self.note})" if self.note else ""
        return f"{self.part}: {formula} = {re.sub(names, number, source)} = {self.value / scale:.3g} {unit}{note}"


@cache
def _lambdas(module: str) -> dict[int, str]:
    """The expression of every lambda of a module, by the line it begins on."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.lineno: ast.unparse(node.body) for node in ast.walk(tree) if isinstance(node, ast.Lambda)}


def total(terms: Iterable[Term]) -> float:
    """The sum of their values."""
    return sum(term.value for term in terms)


def readable(number: float) -> str:
    """A number in few characters: 4096, 0.5625, 8.03e9."""
    if float(number).is_integer() and abs(number) < 1e6:
        return str(int(number))
    mantissa, _, exponent = f"{number:.4e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if abs(number) >= 1e6 else f"{number:.4g}"
