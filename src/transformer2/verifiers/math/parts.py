r"""What an answer consists of: lists, sets, unions, points, intervals, matrices, and the scalars in them.

Works on normal form (`latex.normal`) and leaves the comparison of two scalars to its caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["Leaf", "equal", "unwrapped"]

# Whether a scalar answer equals a scalar gold one; None leaves it open.
Leaf = Callable[[str, str], bool | None]

_OPENING, _CLOSING = "([{", ")]}"
_AND = re.compile(r"\\text\{,? ?(?:and|or)\}|(?<=[\d })\]])(?:and|or)(?=[ \d\\(\[{-])|;")
_THOUSANDS = re.compile(r"[-+]?(?:\\\$)?[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])")
_NAME = re.compile(r"\A(?:[A-Za-z](?:_\{\w{1,3}\})?(?:\([a-z]\))?|[a-z]\^\{-1\}\([a-z]\)|\\[a-z]+)=")
_MEMBER = re.compile(r"\A[a-z]\\in(?![a-z])")
_STATED = re.compile(r"[^=<>,;&]*[A-Za-z][^=<>,;&]*=")
_MATRIX = re.compile(r"\\begin\{matrix\}(.*)\\end\{matrix\}(.*)", re.DOTALL)


def equal(gold: str, answer: str, leaf: Leaf) -> bool | None:
    """Whether two answers are equal, part by part; None while `leaf` leaves it open.

    A list is a set: each of its elements must equal one of the other's. A single gold answer is a list of one, so a
    second, different answer is refused, and the same one in another form is not. Points, intervals and matrices must
    have equal entries in place.
    """
    gold, answer = unwrapped(gold), unwrapped(answer)
    if gold == answer:
        return True
    golds, answers = list(_elements(gold)), list(_elements(answer))
    if len(answers) > 2 * len(golds):  # nobody says the same thing three times
        return False
    if len(golds) != 1 or len(answers) != 1:
        return _same_set(golds, answers, leaf)
    gold, answer = _without_names(golds[0], answers[0])
    unions = _split(gold, r"\cup"), _split(answer, r"\cup")
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        return _same_set(*unions, leaf)
    matrix, other = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(answer)
    if matrix and other:
        return matrix[2] == other[2] and _in_place(_cells(matrix[1]), _cells(other[1]), leaf)
    if _is_tuple(gold) or _is_tuple(answer):
        same_ends = (gold[:1], gold[-1:]) == (answer[:1], answer[-1:])
        return same_ends and _in_place(_split(gold[1:-1], ","), _split(answer[1:-1], ","), leaf)
    return leaf(gold, answer)


def unwrapped(text: str) -> str:
    r"""Without the `\text{...}`, the set braces or the plain braces around the whole."""
    while True:
        inside = text
        for opening, closing in ((r"\text{", "}"), (r"\{", r"\}"), ("{", "}")):
            if text.startswith(opening) and text.endswith(closing) and not text.endswith("\\" + closing):
                middle = text[len(opening) : len(text) - len(closing)]
                if _is_balanced(middle):
                    inside = middle.strip()
                    break
        if inside == text:
            return text
        text = inside


def _is_balanced(text: str) -> bool:
    depth = 0
    for c in text:
        depth += (c in _OPENING) - (c in _CLOSING)
        if depth < 0:
            return False
    return True


def _elements(text: str) -> Iterator[str]:
    """The answers in a list of answers, `a ± b` as two."""
    if whole := _THOUSANDS.match(text):
        text = whole.group().replace(",", "") + text[whole.end() :]
    parts = [part.strip() for part in _split(_AND.sub(",", text), ",")]
    for part in parts if len(parts) == 1 else filter(None, parts):
        if part.count(r"\pm") == 1:
            yield from (part.replace(r"\pm", sign).removeprefix("+") for sign in "+-")
        else:
            yield part


def _split(text: str, mark: str) -> list[str]:
    """Split at a mark outside all brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if depth == 0 and text.startswith(mark, i):
            parts.append(text[start:i])
            i = start = i + len(mark)
            continue
        depth += (text[i] in _OPENING) - (text[i] in _CLOSING)
        i += 1
    return [*parts, text[start:]]


def _without_names(gold: str, answer: str) -> tuple[str, str]:
    r"""`x = 5`, `f(x) = 5` and `x + y = 5` say 5, `x \in [0, 1]` says [0, 1]; two equations stay equations.

    As in the data set's own checker, `y = 2x` and `2x` are one answer.
    """
    gold, answer = _MEMBER.sub("", gold), _MEMBER.sub("", answer)
    if "=" in gold and "=" not in answer:
        return _NAME.sub("", gold), answer  # of x + y = 5, the 5 alone is not the answer
    return gold, answer if "=" in gold else _value(answer)


def _value(text: str) -> str:
    """What stands behind the equals signs; `4 = 5` says nothing and stays."""
    while match := _NAME.match(text) or _STATED.match(text):
        text = text[match.end() :]
    return text


def _is_tuple(text: str) -> bool:
    """A point or an interval: brackets around the whole, and a comma in them."""
    inside = text[1:-1]
    return text[:1] in ("(", "[") and text[-1:] in (")", "]") and _is_balanced(inside) and len(_split(inside, ",")) > 1


def _cells(matrix: str) -> list[str]:
    rows = [row for row in matrix.split(r"\\") if row.strip()]
    return [cell for row in rows for cell in (*row.split("&"), "\n")]  # row ends keep 2 x 3 apart from 3 x 2


def _in_place(golds: list[str], answers: list[str], leaf: Leaf) -> bool | None:
    if len(golds) != len(answers):
        return False
    found = [g == a or leaf(unwrapped(g), unwrapped(a)) for g, a in zip(golds, answers, strict=True)]
    return False if False in found else None if None in found else True


def _same_set(golds: list[str], answers: list[str], leaf: Leaf) -> bool | None:
    pairs = [[equal(gold, answer, leaf) for answer in answers] for gold in golds]
    lines = [*pairs, *zip(*pairs, strict=True)]
    if not lines or any(all(found is False for found in line) for line in lines):
        return False
    return True if all(True in line for line in lines) else None
