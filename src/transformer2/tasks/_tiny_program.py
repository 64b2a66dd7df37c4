"""A calculator for `return <expression>`: integers, one name, + - * ** and parentheses, and nothing else.

The expression is parsed and walked; it is never compiled or executed. Lengths, exponents and values are bounded, so no
completion can make it slow.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

INPUTS = (-3, -2, -1, 0, 2, 5, 7)
MAX_CHARACTERS = 160
MAX_DEPTH = 24
MAX_EXPONENT = 9
MAX_VALUE = 10**30

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


class ProgramError(ValueError):
    """A completion that is not a program of this little language; the message says why."""


def outputs(completion: str, argument: str) -> tuple[int, ...]:
    """Values of the expression on every input (on one when there is no argument).

    Args:
        completion: `return ( x ** 2 ) - 4`.
        argument: Name that stands for the input; empty for a function of nothing.

    Raises:
        ProgramError: Anything but one return statement of this language, within its bounds.
    """
    text = completion.strip()
    if not text.startswith("return "):
        raise ProgramError("not a return statement")
    if len(text) > MAX_CHARACTERS:
        raise ProgramError("expression too long")
    try:
        tree = ast.parse(text.removeprefix("return ").strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ProgramError("not an expression") from error
    inputs = INPUTS if argument else INPUTS[:1]
    return tuple(_value(tree, {argument: x} if argument else {}, MAX_DEPTH) for x in inputs)


def _value(node: ast.expr, names: dict[str, int], depth: int) -> int:
    if depth == 0:
        raise ProgramError("expression too deep")
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            result = value
        case ast.Name(id=name) if name in names:
            result = names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand, names, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left, names, depth - 1), _value(right, names, depth - 1)
            if isinstance(op, ast.Pow) and not 0 <= b <= MAX_EXPONENT:
                raise ProgramError("exponent out of bounds")
            result = _OPERATORS[type(op)](a, b)
        case _:
            raise ProgramError(f"{type(node).__name__} is not part of the language")
    if abs(result) > MAX_VALUE:
        raise ProgramError("value out of bounds")
    return result
