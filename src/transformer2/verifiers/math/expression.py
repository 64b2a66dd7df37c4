r"""The value of an expression in normal form (`latex.normal`), to compare two of them by.

A strict reader of our own (ADR 9): what a reward rests on must mean one thing. Parsers that make something of
everything read `4(6)` as the mixed number 10, `10'` as 10 and `1.5.2` as 3/10 (latex2sympy2_extended 1.11). Here

- what stands side by side is a product, but for a whole number before a proper fraction (`3\frac{1}{2}`, `3 1/2`), a
  sum;
- a number after a factor (`x2`, `4 6`), an operator without an operand, or a slash that two people read differently
  (`a/bc`, `\cos\pi/3`) has no value: ValueError.

Two expressions are equal when they have one value: exactly where both are rational, else to 90 digits, more than an
answer may have; with variables, at a handful of points of either sign and several sizes (|x| is not x). That takes
milliseconds, where symbolic simplification may take minutes.
"""

from __future__ import annotations

import math
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

__all__ = ["same"]

DIGITS = 100
LARGEST = 10**60
MAX_BITS = 1 << 16  # of an exact number
MAX_FACTORIAL = 5_000
SIZES = (Fraction(1), Fraction(-1), Fraction(1, 7), Fraction(250), Fraction(-250))
NUM_POINTS = len(SIZES) + 5  # at the last ones, letters differ in sign: those of one case in the last five bits

_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\[A-Za-z]+|\S")
_INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot", "sec": "asec", "csc": "acsc"}
_FUNCTIONS = {"\\" + name: name for name in (*_INVERSE, "sinh", "cosh", "tanh", "exp", "ln", "log")}
_FUNCTIONS |= {r"\arc" + name: inverse for name, inverse in _INVERSE.items()}
_GREEK = frozenset("\\" + name for name in "alpha beta gamma delta theta lambda mu omega phi rho sigma".split())  # noqa: SIM905
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
_PRODUCTS = {r"\cdot": operator.mul, r"\times": operator.mul, "/": operator.truediv, r"\div": operator.truediv}


def same(gold: str, answer: str) -> bool:
    """Whether two expressions have one value, or two equations are one up to a constant factor.

    Raises:
        ValueError: One of them cannot be read; mpmath may raise others.
    """
    with mpmath.workdps(DIGITS):
        sides = [text.split("=") for text in (gold, answer)]
        if len(sides[0]) != len(sides[1]) or len(sides[0]) > 2:
            return False
        pairs = [(_at(sides[0], point), _at(sides[1], point)) for point in range(NUM_POINTS)]
        pairs = [pair for pair in pairs if None not in pair]
        real = [pair for pair in pairs if all(map(_is_real, pair))]
        if real and "i" not in re.sub(r"\\[a-z]+", "", gold):  # a variable outside the domain of a root or a logarithm
            if any(_is_real(a) != _is_real(b) for a, b in pairs):
                return False
            pairs = real
        if len(pairs) < 2:
            return False
        if len(sides[0]) == 2:
            a0, b0 = pairs[0]
            return (
                a0 != 0
                and b0 != 0
                and all(_close(_apply(operator.mul, a, b0), _apply(operator.mul, b, a0)) for a, b in pairs)
            )
        return all(_close(a, b) for a, b in pairs)


def _at(sides: list[str], point: int) -> Any:
    """The value at a point, of an equation the difference of its sides; None where there is none."""
    try:
        values = [_Reader(side, point).value() for side in sides]
        value = values[0] if len(values) == 1 else _apply(operator.sub, values[0], values[1])
    except (ZeroDivisionError, OverflowError):
        return None
    return value if isinstance(value, Fraction) or mpmath.isfinite(value) else None


def _is_real(value: Any) -> bool:
    return isinstance(value, Fraction) or abs(value.imag) <= abs(value) * mpmath.mpf(10) ** (10 - DIGITS)


def _close(a: Any, b: Any) -> bool:
    """Equal; where one is not exact, in all but the last ten digits, and in that many places next to a 0.

    Of numbers so large that their digits before the point are not all there, nothing is said.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _inexact(a), _inexact(b)
    scale = max(abs(a), abs(b)) if a != 0 and b != 0 else 1
    return bool(scale < LARGEST and abs(a - b) < scale * mpmath.mpf(10) ** (10 - DIGITS))


def _inexact(value: Any) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _apply(operation: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return operation(a, b) if exact else operation(_inexact(a), _inexact(b))


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > MAX_BITS:
            raise OverflowError("too large")
        return base ** int(exponent)
    return mpmath.power(_inexact(base), _inexact(exponent))


def _whole(value: Any, limit: int = MAX_FACTORIAL) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= limit:
        raise ValueError(f"{value} where a whole number belongs")
    return int(value)


class _Reader:
    """Reads an expression from left to right and works it out at one point."""

    def __init__(self, text: str, point: int):
        self.tokens = [*_TOKEN.findall(text), ""]
        self.next, self.point, self.in_bars = 0, point, False

    def value(self) -> Any:
        """The value of the whole text."""
        value = self._sum()
        self._take("")
        return value

    def _take(self, *expected: str) -> str:
        token = self.tokens[self.next]
        if expected and token not in expected:
            raise ValueError(f"{token!r} where {' or '.join(expected)} belongs")
        self.next += token != ""
        return token

    def _sum(self) -> Any:
        value = self._product()
        while self.tokens[self.next] in ("+", "-"):
            operation = operator.add if self._take() == "+" else operator.sub
            value = _apply(operation, value, self._product())
        return value

    def _product(self) -> Any:
        value, mark = self._signed(), ""
        while True:
            if self.tokens[self.next] in _PRODUCTS:
                mark = self._take()
                value = _apply(_PRODUCTS[mark], value, self._signed())
            elif self._is_factor():
                top, slash, bottom = self.tokens[max(0, self.next - 3) : self.next] if self.next > 2 else ("", "", "")
                if mark in ("/", r"\div") and not (slash == "/" and top[0].isdigit() and bottom[0].isdigit()):
                    raise ValueError("1/2x: which of them is divided by?")  # but 3/4 \pi is a fraction of pi
                value = _apply(operator.mul, value, self._factor())
            else:
                return value

    def _is_factor(self) -> bool:
        token = self.tokens[self.next]
        if token[:1].isdigit():
            raise ValueError("a number after a factor")
        if token == "|":
            return not self.in_bars
        return token in ("(", "[", "{") or token[:1].isalpha() or (token[:1] == "\\" and token not in _PRODUCTS)

    def _signed(self) -> Any:
        if self.tokens[self.next] in ("+", "-"):
            return self._signed() if self._take() == "+" else -self._signed()
        return self._factor()

    def _factor(self) -> Any:
        value = self._atom()
        if self.tokens[self.next] == "!":
            self._take()
            value = Fraction(math.factorial(_whole(value)))
        if self.tokens[self.next] == "^":
            if self.tokens[self.next + 1 : self.next + 4] == ["{", r"\circ", "}"]:
                self.next += 4
                return _apply(operator.mul, value, mpmath.pi / 180)
            self._take()
            value = _power(value, self._group("{"))
            if self.tokens[self.next] == "^":
                raise ValueError("a power of a power without brackets")
        return value

    def _atom(self) -> Any:
        token = self._take()
        if token[:1].isdigit() or token[:1] == ".":
            return self._number(token)
        if token in _CLOSING:
            self.next -= 1
            value = self._group(token)
            return abs(value) if token == "|" else value
        if token in _FUNCTIONS:
            return self._function(_FUNCTIONS[token])
        if token == r"\frac":
            return _apply(operator.truediv, self._group("{"), self._group("{"))
        if token == r"\sqrt":
            return self._root()
        if token == r"\binom":
            n, k = self._group("{"), self._group("{")
            return Fraction(math.comb(_whole(n), _whole(k)))
        if token == r"\pi":
            return +mpmath.pi
        if token in ("e", "i"):
            return +mpmath.e if token == "e" else mpmath.mpc(0, 1)
        if token.isalpha() or token in _GREEK:
            return self._symbol(token)
        raise ValueError(f"{token!r} has no value")

    def _number(self, token: str) -> Fraction:
        following = self.tokens[self.next : self.next + 7]
        if following[:1] == [r"\overline"] and "." in token:  # 0.1\overline{6}
            period = following[2]
            if not (period.isdigit() and following[3] == "}"):
                raise ValueError("no period")
            self.next += 4
            places = len(token) - token.index(".") - 1
            return Fraction(token + "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places)
        top = bottom = ""
        if following[:1] == [r"\frac"] and following[1] == following[4] == "{" and following[3] == following[6] == "}":
            top, bottom, length = following[2], following[5], 7
        elif following[0].isdigit():
            top, bottom, length = following[0], following[2] if following[1] == "/" else "", 3
            if not bottom.isdigit():
                raise ValueError("two numbers side by side")
        if not (top.isdigit() and bottom.isdigit()):
            return Fraction(token)
        if not (token.isdigit() and 0 < int(top) < int(bottom) and int(token)):
            raise ValueError("neither a mixed number nor clearly a product")
        self.next += length
        return Fraction(token) + Fraction(int(top), int(bottom))

    def _group(self, opening: str) -> Any:
        self._take(opening)
        outside, self.in_bars = self.in_bars, opening == "|"
        value = self._sum()
        self._take(_CLOSING[opening])
        self.in_bars = outside
        return value

    def _root(self) -> Any:
        n = _whole(self._group("["), 100) if self.tokens[self.next] == "[" else 2
        value = self._group("{")
        if n % 2 and _is_real(value) and value < 0:
            return -mpmath.root(_inexact(-value), n)
        return mpmath.root(_inexact(value), n)

    def _function(self, name: str) -> Any:
        """`\sin^2 2x`, `\log_2 8`: an argument without brackets extends over letters and pi."""
        power, base = Fraction(1), None
        for _ in range(2):
            if self.tokens[self.next] == "^":
                self._take()
                power = self._group("{")
            elif self.tokens[self.next] == "_" and name == "log":
                self._take()
                base = self._group("{")
        bracketed = self.tokens[self.next] in _CLOSING
        argument = self._atom() if bracketed else self._factor()
        while not bracketed and (self.tokens[self.next].isalpha() or self.tokens[self.next] in (r"\pi", *_GREEK)):
            argument = _apply(operator.mul, argument, self._factor())
        if not bracketed and self.tokens[self.next] == "/":
            raise ValueError(r"\cos \pi/3: what is divided?")
        if power == -1:
            name, power = _INVERSE[name], Fraction(1)
        x = _inexact(argument)
        found = mpmath.log(x, 10 if base is None else _inexact(base)) if name == "log" else getattr(mpmath, name)(x)
        return found if power == 1 else _power(found, power)

    def _symbol(self, name: str) -> Fraction:
        """A fraction without a pattern for a variable, and for f or g of a value."""
        if self.tokens[self.next] == "_":
            self._take()
            self._take("{")
            name += "_" + self._take()
            self._take("}")
        if name in ("f", "g") and self.tokens[self.next] == "(":
            name += mpmath.nstr(_inexact(self._group("(")), 30)
        draw = random.Random(f"{self.point} {name}")
        bit = self.point - len(SIZES)
        size = SIZES[self.point] if bit < 0 else 1 - 2 * (ord(name[-1]) >> bit & 1)
        return size * Fraction(draw.randint(10**6, 3 * 10**6), 1_000_003)
