"""What no final answer needs, and a parser or a computer algebra system may choke on: refused before anybody reads it.

Nothing may be left to be worked out (sums, integrals, limits, factorials) unless the gold answer has it too, and no
power may take minutes to multiply out.
"""

from __future__ import annotations

import re

__all__ = ["MAX_LENGTH", "refusal", "unreadable"]

MAX_LENGTH = 512  # characters
MAX_NESTING = 16
MAX_DIGITS = 64  # of one number
MAX_EXPONENT = 128  # unless the gold answer has a larger one
MAX_POWER_OF_SUM = 12  # (a + b)^n is multiplied out; the same
MAX_FUNCTIONS = 8  # the same

_ALLOWED = re.compile(r"[0-9A-Za-z+\-*/^_=<>()\[\]{}|!.,:;'&%$\\\s]*")
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
_TOWER = re.compile(r"\^\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\^|!!|\^[^=,]*!")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_EXPONENT = re.compile(r"\^\{[^\d{}]*(\d+)")
_FUNCTION = re.compile(r"\\(?:sqrt|binom|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp)(?![a-z])")
_POWER_OF_SUM = re.compile(r"[)\]|]\^\{[^\d{}]*(\d+)")
# Without the backslash, which _COMMAND matches.
_KNOWN = frozenset({
    "frac", "sqrt", "pi", "text", "cdot", "times", "div", "infty", "cup", "cap", "circ", "pm", "mp", "in", "le", "ge",
    "lt", "gt", "ne", "emptyset", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh",
    "cosh", "tanh", "log", "ln", "exp", "overline", "angle", "begin", "end", "theta", "alpha", "beta", "gamma",
    "lambda", "mu", "omega", "phi", "rho", "sigma", "delta", "mathbb", "vec", "langle", "rangle", "triangle", "binom",
    "Delta", "Gamma", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega", "Pi", "Xi", "epsilon", "varepsilon", "zeta",
    "eta", "kappa", "nu", "xi", "tau", "chi", "psi", "varphi", "vartheta", "ell", "hbar", "bar", "hat", "tilde", "dot",
    "mathcal", "equiv", "pmod", "approx", "overrightarrow", "max", "min", "gcd", "det", "lfloor", "rfloor",
    "lceil", "rceil",
})  # fmt: skip


def unreadable(text: str) -> str:
    """Why a text cannot be brought to normal form; "" when it can. Linear in its length."""
    if len(text) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    depth = deepest = 0
    for c in text:
        depth += (c in "{([") - (c in "})]")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING}"
    if _LONG_NUMBER.search(text):
        return f"a number of more than {MAX_DIGITS} digits"
    return ""


def refusal(gold: str, answer: str) -> str:
    """Why an answer in normal form is not compared; "" when it may be."""
    if not _ALLOWED.fullmatch(answer):
        return "characters of no answer"
    if _TOWER.search(answer):
        return "a tower of exponents"
    if "!" in answer and "!" not in gold:
        return "a factorial that is not worked out"
    if unknown := set(_COMMAND.findall(answer)) - _KNOWN - set(_COMMAND.findall(gold)):
        return f"\\{min(unknown)} in a final answer"
    if len(_FUNCTION.findall(answer)) > max(MAX_FUNCTIONS, len(_FUNCTION.findall(gold))):
        return "too many roots and functions"
    if _largest(_EXPONENT, answer) > max(MAX_EXPONENT, _largest(_EXPONENT, gold)):
        return "an exponent that is too large"
    if _largest(_POWER_OF_SUM, answer) > max(MAX_POWER_OF_SUM, _largest(_POWER_OF_SUM, gold)):
        return "a power that is too large to multiply out"
    return ""


def _largest(pattern: re.Pattern[str], text: str) -> int:
    return max(map(int, pattern.findall(text)), default=0)
