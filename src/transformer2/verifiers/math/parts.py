r"""What an answer consists of: lists, sets, unions, points, intervals, matrices, what is said of names, and scalars.

Works on normal form (`latex.normal`) and leaves the comparison of two scalars to its caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import ascii_lowercase

__all__ = ["Leaf", "equal", "unwrapped"]

# Whether a scalar answer equals a scalar gold one; None leaves it open.
Leaf = Callable[[str, str], bool | None]

_OPENING, _CLOSING = "([{", ")]}"
_AND = re.compile(r"\\text\{,? ?(?:and|or)\}|(?<=[\d })\]])(?:and|or)(?=[ \d\\(\[{-]|[A-Za-z]=)|;")
_OR = re.compile(r"\\text\{or\}|(?<=[\d })\]])or(?=[ \d\\(\[{-]|[a-z][<>\\])|\\cup(?![a-z])")
_VARIABLE = (
    r"(?:[A-Za-z]|\\(?:bar|hat|vec|tilde|dot|mathcal|mathbb)\{[A-Za-z]\}"
    r"|\\(?!le|ge|ne|in|pi|cdot|times|infty)[A-Za-z]+)(?:_\{\w{1,3}\})?"
)
_NAME = re.compile(rf"{_VARIABLE}'*(?:\^\{{-1\}})?(?:\([a-z](?:,[a-z])*\))?")
_MEMBER = re.compile(r"\A(?:[A-Za-z]|\([a-z](?:,[a-z])*\))\\in(?![a-z])")
_POINT = re.compile(r"(?:\\text\{(?:[Tt]he )?[Pp]oint\} ?)?(?:[A-Z]|\\text\{[A-Z]\})?(?:_\{\w\})?'?:?(?=\()")  # P(3,5)
_CONGRUENT = re.compile(r"(.+)\\equiv(?! ?0) ?(.+?) ?(?:\(?(?:\\pmod\{?|\\text\{mod\}) ?\d+[})]*)?")
_NAMES = re.compile(r"\(([a-z](?:,[a-z])+)\)=\((.*)\)")
_SUCH_THAT = re.compile(r"\A[a-z](?:\\in\\mathbb\{R\})?[|:](?=.*[<>\\])")
_RELATION = re.compile(r"(<|>|\\[lgn]e(?![a-z]))")
_WHOLE = {r"\mathbb{R}": r"(-\infty,\infty)", r"\{\}": r"\emptyset"}
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_MATRIX = re.compile(r"(-?[^|+-]*)\\begin\{matrix\}(.*)\\end\{matrix\}([^|]*)", re.DOTALL)
_CHOICE = re.compile(
    r"(?:\\text\{\(([A-E])\) ?\}|\(\\text\{([A-E])\}\)|\(([A-E])\) ?)(-?(?:\\\$)?(?:[\d.]|\\frac|\\sqrt)[^(,]*)"
)


def equal(gold: str, answer: str, leaf: Leaf) -> bool | None:
    """Whether two answers are equal, part by part; None while `leaf` leaves it open.

    A list is a set: each of its elements must equal one of the other's, as often as a gold list repeats it. A single
    gold answer is a list of one, so a second, different answer is refused, and the same one in another form is not.
    Points, intervals and matrices must have equal entries in place.
    """
    answer = _without_choice(gold, answer)
    if "equiv" not in gold and (congruent := _CONGRUENT.fullmatch(answer)):
        answer = f"{congruent[1]}={congruent[2]}"
    if (about := _variables(gold)) and (named_by := _variables(answer)) and about.isdisjoint(named_by):
        return False  # y < 3 for x < 3
    gold, answer = (_NAMES.sub(_in_order, text) for text in (gold, answer))
    gold = _solved(unwrapped(gold.replace("{,}", "")))
    if _is_tuple(gold):
        answer = _POINT.sub("", answer, count=1) if _POINT.match(answer) else answer
    golds = list(_elements(gold))
    answers = list(_elements(_solved(unwrapped(answer.replace("{,}", "")))))
    if "{,}" in answer and len(golds) > 1 and len(answers) != len(golds):  # 2,100 is one number, or two if two are due
        answers = list(_elements(unwrapped(answer.replace("{,}", ","))))
    if golds == answers:
        return True
    if len(answers) == 1:
        whole = golds[0] if len(golds) == 1 else gold
        value, claims = _claims(whole, answers[0])
        if claims != answers or value != whole:  # what is behind a name may be a list
            return _all(equal(value, claim, leaf) for claim in claims)
    if len(golds) == 1 and len(answers) > 1 and _is_tuple(gold):  # x = 3, y = 4 for (3, 4)
        named = [_split(element, "=") for element in answers]
        if all(len(sides) == 2 and _NAME.fullmatch(sides[0]) for sides in named):
            values = _by_name([sides[0] for sides in named], [sides[1] for sides in named])
            answers = ["(" + ",".join(values) + ")"] if values else answers
    if r"\cup" in gold and len(golds) == 1 and all(map(_is_tuple, answers)):
        answers = [r"\cup".join(answers)]
    if len(answers) > 2 * len(golds):  # nobody says the same thing three times
        return False
    if len(golds) != 1 or len(answers) != 1:
        return _same_set(golds, answers, leaf)
    gold, answer = golds[0], answers[0]
    unions = _split(gold, r"\cup"), _split(answer, r"\cup")
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        return _same_set(*unions, leaf)
    matrix, other = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(answer)
    if matrix and other:
        return matrix[3] == other[3] and _in_place(_cells(matrix), _cells(other), leaf)
    if _is_tuple(gold) or _is_tuple(answer):
        same_ends = (gold[:1], gold[-1:]) == (answer[:1], answer[-1:])
        return same_ends and _in_place(_split(gold[1:-1], ","), _split(answer[1:-1], ","), leaf)
    return leaf(gold, answer)


def unwrapped(text: str) -> str:
    r"""Without the `\text{...}`, the set braces or the plain braces around the whole, or brackets around a matrix."""
    while True:
        inside = text
        for opening, closing in ((r"\text{", "}"), (r"\{", r"\}"), ("{", "}"), ("(", ")"), ("[", "]")):
            if text.startswith(opening) and text.endswith(closing) and not text.endswith("\\" + closing):
                middle = text[len(opening) : len(text) - len(closing)]
                if opening in "([" and not _MATRIX.fullmatch(middle):
                    continue
                if _is_balanced(middle):
                    inside = middle.strip()
                    break
        if inside == text or not inside:  # {} is the empty set
            return text
        text = inside


def _is_balanced(text: str) -> bool:
    depth = 0
    for c in text:
        depth += (c in _OPENING) - (c in _CLOSING)
        if depth < 0:
            return False
    return True


def _in_order(match: re.Match[str]) -> str:
    """`(y,x)=(3,5)` as `(5,3)`; but (m,b) stays as it is: only neighbours in the alphabet have an order."""
    values = _by_name(match[1].split(","), _split(match[2], ","))
    return "(" + ",".join(values) + ")" if values else match[0]


def _by_name(names: list[str], values: list[str]) -> list[str] | None:
    """Values in the order of their names, as x and y have one; None where neither names nor text give one."""
    if len(names) == len(values) and "".join(sorted(names)) in ascii_lowercase:
        return [value for _, value in sorted(zip(names, values, strict=True))]
    return values if names == sorted(set(names)) else None


def _variables(text: str) -> set[str]:
    """The names that an answer is about: x of `x < 3`, of `1 < x < 2` and of `x \\in [1,2]`; none of a set's."""
    if member := _MEMBER.match(text):
        return {member[0].partition(r"\in")[0]}
    sides = [side.strip() for part in _OR.split(text) for side in _RELATION.split(part)[::2]]
    return {side for side in sides if _NAME.fullmatch(side)} if _RELATION.search(text) else set()


def _without_choice(gold: str, answer: str) -> str:
    """`(C) 12` as the letter where the gold answer is one, else as what stands behind it."""
    choice = _CHOICE.fullmatch(unwrapped(answer))
    if not choice:
        return answer
    of_letter = re.fullmatch(r"\(?[A-Z]\)?", re.sub(r"\\text|[{}]", "", gold))
    if of_letter:
        return answer if re.search(r"[A-Z]|or|and", choice[4]) else choice[1] or choice[2] or choice[3]
    return choice[4]


def _solved(text: str) -> str:
    r"""`1 < x \le 2` as (1,2], `x < 1 or x > 2` as a union, `x \ne 1` as two rays; > in a chain turned round to <."""
    text = _WHOLE.get(text, _SUCH_THAT.sub("", text))
    if not _RELATION.search(text):
        return text.replace(r"+\infty", r"\infty")
    rays = [_interval(part.strip()) for part in _OR.split(text)]
    return text if "" in rays else r"\cup".join(rays)


def _interval(text: str) -> str:
    """The interval that an inequality with one name describes, a chain in rising order, or ""."""
    parts = [part.strip() for part in _RELATION.split(text)]
    if len(parts) < 3 or "" in parts or len({mark in (">", r"\ge") for mark in parts[1::2]}) > 1:
        return ""
    if _MEMBER.match(text) or "," in text:
        return ""
    if parts[1] in (">", r"\ge"):
        parts = [_FLIPPED.get(part, part) for part in reversed(parts)]
    if set(parts[1::2]) - {"<", r"\le", r"\ne"}:
        return ""
    left, right = ("(" if mark != r"\le" else "[" for mark in (parts[1], parts[-2]))
    right = {"(": ")", "[": "]"}[right]
    if len(parts) == 5 and _NAME.fullmatch(parts[2]):
        return f"{left}{parts[0]},{parts[4]}{right}"
    if len(parts) == 3:
        low, mark, high = parts
        if mark == r"\ne" and _NAME.fullmatch(low):
            return rf"(-\infty,{high})\cup({high},\infty)"
        if mark != r"\ne" and _NAME.fullmatch(low):
            return rf"(-\infty,{high}{right}"
        if mark != r"\ne" and _NAME.fullmatch(high):
            return rf"{left}{low},\infty)"
    return "".join(parts)


def _elements(text: str) -> Iterator[str]:
    """The answers in a list of answers, `a ± b` as two."""
    parts = [part.strip() for part in _split(_AND.sub(",", text), ",")]
    for part in parts if len(parts) == 1 else filter(None, parts):
        mark = r"\pm" if r"\pm" in part else r"\mp"
        if part.count(mark) == 1 and r"\{" not in part:
            yield from (part.replace(mark, sign).removeprefix("+") for sign in "+-")
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


def _claims(gold: str, answer: str) -> tuple[str, list[str]]:
    r"""What an answer says the value is: `x = 5`, `5 = x`, `f(x) = 5`, `x + y = 5` and `x = 2 + 3 = 5` say 5.

    Every side that is not a name must equal the gold answer, so that `x = 4 = 5` and `4 = 5` say nothing. An equation
    still to be solved (`2x = 5`, `x = 5 + y`) does not name a value. As in the data set's own checker, `y = 2x` and
    `2x` are one answer; of a gold equation such as x + y = 5, the 5 alone is not. Two equations are left to `leaf`.
    """
    gold, answer = _MEMBER.sub("", gold), _MEMBER.sub("", answer)
    sides = _split(answer.replace(":=", "="), "=")
    if len(sides) == 1 and (about := _split(answer, r"\approx"))[1:] and (not about[0] or _NAME.fullmatch(about[0])):
        sides = about[1:]
    named = _split(gold, "=")
    if len(named) > 1:
        if not (len(named) == 2 and _NAME.fullmatch(named[0])):
            return gold, [answer]
        of_same = named[0] in (sides[0], sides[-1]) or ("(" in named[0] + sides[0] and _NAME.fullmatch(sides[0]))
        if len(sides) > 1 and not of_same:
            return gold, [answer]
        gold = named[1]
    first = sides
    while len(sides) > 1 and _is_name(sides[0], sides[1:]):
        sides = sides[1:]
    if sides is first and len(sides) > 1 and _NAME.fullmatch(sides[-1]):
        sides = sides[:-1]
    return gold, sides


def _is_name(side: str, others: Sequence[str]) -> bool:
    """Whether a side names the quantity that the others are the value of."""
    if re.search(r"\A-|\\sqrt|\A[A-Za-z]\^\{-1\}\Z|\b(?:not|wrong)\b", side):
        return False  # of -x = 5 the value of x is another one
    if _NAME.fullmatch(side):
        return not any(re.search(rf"(?<![A-Za-z\\]){re.escape(side)}(?![A-Za-z])", other) for other in others)
    if r"\text" in side or re.search(r"\\(?:sin|cos|tan|log|ln|angle|gcd|max|min|det)", side):
        return re.search("[A-Za-z]", re.sub(r"\\(?!text|angle|gcd|max|min|det)[a-z]+", "", side)) is not None
    bare = re.sub(r"'|_\{[^{}]*\}|\^\{-1\}|(?<=[A-Za-z}'])\([\d.,]*\)|\\[A-Za-z]+", "", side)
    letters = set(re.findall("[A-Za-z]", bare)) - {"e", "i"}
    if not re.search(r"\d", bare):
        return len(letters) > 0
    return len(letters) > 1 and "0" not in others and not re.search(r"(?:\A|[+-])[\d.]+(?:[+-]|\Z)", bare)


def _is_tuple(text: str) -> bool:
    """A point or an interval: brackets around the whole, and a comma in them."""
    inside = text[1:-1]
    return text[:1] in ("(", "[") and text[-1:] in (")", "]") and _is_balanced(inside) and len(_split(inside, ",")) > 1


def _cells(matrix: re.Match[str]) -> list[str]:
    """The entries, times what stands before the matrix; row ends keep 2 x 3 apart from 3 x 2."""
    rows = [row for row in matrix[2].split(r"\\") if row.strip()]
    cells = ([f"{matrix[1]}({cell})" if matrix[1] else cell for cell in row.split("&")] for row in rows)
    return [cell for row in cells for cell in (*row, "\n")]


def _in_place(golds: list[str], answers: list[str], leaf: Leaf) -> bool | None:
    if len(golds) != len(answers):
        return False
    return _all(g == a or leaf(unwrapped(g), unwrapped(a)) for g, a in zip(golds, answers, strict=True))


def _same_set(golds: list[str], answers: list[str], leaf: Leaf) -> bool | None:
    pairs = [[equal(gold, answer, leaf) for answer in answers] for gold in golds]
    lines = [*pairs, *zip(*pairs, strict=True)]
    if not lines or any(all(found is False for found in line) for line in lines):
        return False
    if len(set(golds)) < len(golds):  # roots with their multiplicity
        counts = _all(
            None if None in row else row.count(True) == golds.count(g) for g, row in zip(golds, pairs, strict=True)
        )
        if counts is not True:
            return counts
    return True if all(True in line for line in lines) else None


def _all(found: Iterable[bool | None]) -> bool | None:
    """False if any is, None if any is open."""
    verdicts = list(found)
    return False if False in verdicts else None if None in verdicts else True
