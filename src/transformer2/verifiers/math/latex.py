r"""One spelling for LaTeX: `\dfrac12`, `\frac {1}{2}` and `\tfrac{1}{2}` all become `\frac{1}{2}`.

Commands that only move ink and fonts are dropped, synonyms renamed, every argument put in braces, thousands ungrouped.
A comma that may group thousands or part a list (`2,100`, but neither `2, 100` nor `(2,100)`) becomes `{,}`.
"""

from __future__ import annotations

import re
from collections import deque

__all__ = ["normal"]

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_GROUPING = re.compile(r"(?<=\d)(?:\{,\}|(?:,?\s*\\!|\\,)\s*)(?=\d{3}(?!\d))")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_UNICODE = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": "/", "\u03c0": r"\pi ",
     "\u221a": r"\sqrt ", "\u00b0": r"^{\circ}", "\u221e": r"\infty ", "\u222a": r"\cup ", "\u00b1": r"\pm ",
     "\u00b2": "^{2}", "\u00b3": "^{3}", "\u2264": r"\le ", "\u2265": r"\ge ", "\u00a0": " ", "\u202f": " ",
     "\u2009": " ", "\u20ac": r"\text{euro}", "\u00a3": r"\text{pound}"}
)  # fmt: skip
_SPACE = frozenset({r"\,", r"\;", r"\:", r"\ ", r"\quad", r"\qquad", "~"})
_DROPPED = frozenset({
    r"\left", r"\right", r"\big", r"\Big", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr", r"\bigg", r"\Bigg", r"\!",
    r"\biggl", r"\biggr", r"\displaystyle", r"\textstyle", r"\limits", r"\(", r"\)", r"\[", r"\]", "$", r"\rm", r"\it",
    r"\bf", r"\large", r"\Large", r"\huge", r"\Huge", r"\small",
})  # fmt: skip
_FONTS = frozenset({
    r"\mathbf", r"\mathit", r"\mathsf", r"\mathtt", r"\mathnormal", r"\bm", r"\boldsymbol", r"\pmb", r"\underline",
    r"\boxed", r"\fbox",
})  # fmt: skip
_SYNONYMS = {
    r"\frac": r"\dfrac \tfrac \cfrac", r"\cdot": r"\ast *", r"\pmod": r"\mod \bmod", r"\le": r"\leq \leqslant",
    r"\text": (
        r"\mbox \mathrm \textbf \textrm \textit \operatorname \hbox \textsf \texttt \textnormal \emph"
    ),
    r"\ge": r"\geq \geqslant", r"\ne": r"\neq", r"\text{or}": r"\lor \vee", r"\text{and}": r"\land \wedge",
    "|": r"\mid \lvert \rvert \vert", r"\{": r"\lbrace", r"\}": r"\rbrace", "[": r"\lbrack", "]": r"\rbrack",
    "(": r"\lparen", ")": r"\rparen", r"\emptyset": r"\varnothing", ":": r"\colon", r"\infty": r"\infin",
    r"\dot": r"\ddot", r"\hat": r"\widehat", r"\tilde": r"\widetilde", "%": r"\%",
}  # fmt: skip
_RENAMED = {name: synonym for synonym, names in _SYNONYMS.items() for name in names.split()}
_ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, r"\overline": 1, "^": 1, "_": 1}
_ARGUMENTS |= dict.fromkeys((r"\bar", r"\hat", r"\vec", r"\tilde", r"\dot", r"\mathcal", r"\pmod"), 1)
_BETWEEN = {r"\over": r"\frac", r"\choose": r"\binom"}  # {1 \over 2}
_COMMAND_AT_END = re.compile(r"\\[A-Za-z]+\Z")
_MATRIX = re.compile(
    r"(?<=\\begin)\{(?:[bp]?(?:small)?matrix|array\}\{[lcr]+)\}|(?<=\\end)\{(?:[bp]?(?:small)?matrix|array)\}"
)


def normal(text: str) -> str:
    """The one spelling of an answer. The text is short and not nested deeply (`limits.unreadable`)."""
    text = re.sub(r"(?<=\\\\)\s*\[[\d.]+\w\w\]", "", text)  # room between the rows of a matrix
    text = _THOUSANDS.sub(_grouped, _GROUPING.sub("", text)).strip("* ")
    text = re.sub(r"\u221a(\d+)", r"\\sqrt{\1}", text).translate(_UNICODE).replace("**", "^")
    text = re.sub(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime\b)", "'", text)
    read = (_RENAMED.get(token, token) for token in _TOKEN.findall(text.replace(r"\degree", r"^{\circ}")))
    tokens = deque(" " if t in _SPACE or t.isspace() else t for t in read if t not in _DROPPED)
    spelled = _MATRIX.sub("{matrix}", _sequence(tokens)).strip().lstrip("=:")
    return spelled if spelled.endswith(".m.") else spelled.rstrip(". \\")


def _grouped(match: re.Match[str]) -> str:
    """Without its commas when a group starts with 0, which no number in a list does; in brackets they part a list."""
    if re.search(",0", match[0]):
        return match[0].replace(",", "")
    before = match.string[: match.start()]
    inside = sum(before.count(c) for c in ("(", "[", r"\{")) - sum(before.count(c) for c in (")", "]", r"\}"))
    return match[0] if inside > 0 else match[0].replace(",", "{,}")


def _sequence(tokens: deque[str], end: str = "") -> str:
    """Pieces up to `end`, without the spaces that mean nothing."""
    out, space = "", False
    while tokens and (token := tokens.popleft()) != end:
        if token == " ":
            space = True
            continue
        if token in _BETWEEN:
            return f"{_BETWEEN[token]}{{{out}}}{{{_sequence(tokens, end)}}}"
        piece = _piece(token, tokens)
        # "1 2" is not 12, and \sin x is not \sinx.
        if (space and out[-1:].isdigit() and piece[:1].isdigit()) or (
            piece[:1].isalpha() and _COMMAND_AT_END.search(out)
        ):
            out += " "
        out, space = out + piece, False
    return out


def _piece(token: str, tokens: deque[str]) -> str:
    if token == "{":
        return "{" + _sequence(tokens, "}") + "}"
    if token == r"\text":
        words = _words(tokens)
        # \mathrm{i} and \text{13} are mathematics; \text{m} and \text{A} are a unit and a choice.
        return f"\\text{{{words}}}" if re.search("[A-Z]|[a-z]{2}|[msghl]", words) else words
    if token in _FONTS or token == r"\textcolor":
        if token == r"\textcolor":
            _argument(tokens)
        inside = _argument(tokens)
        return inside if inside.isalnum() else "{" + inside + "}"
    if token in (r"\color", r"\hspace"):
        _argument(tokens)
        return ""
    option = ""
    if token == r"\sqrt" and _next(tokens) == "[":
        tokens.popleft()
        option = "[" + _sequence(tokens, "]") + "]"
    return token + option + "".join("{" + _argument(tokens) + "}" for _ in range(_ARGUMENTS.get(token, 0)))


def _argument(tokens: deque[str]) -> str:
    if _next(tokens) in ("", "}"):
        return ""
    token = tokens.popleft()
    if token in "^_":
        return token  # ^^^: nothing is meant, and a long row of them must not become a deep recursion
    if token == "-" and _next(tokens).isdigit():
        return token + tokens.popleft()
    return _sequence(tokens, "}") if token == "{" else _piece(token, tokens)


def _words(tokens: deque[str]) -> str:
    r"""The argument of `\text`, with its spaces."""
    if _next(tokens) != "{":
        return ""
    tokens.popleft()
    words, depth = "", 1
    while tokens:
        token = tokens.popleft()
        depth += (token == "{") - (token == "}")
        if depth == 0:
            break
        words += token
    return re.sub(r"\s+", " ", words).strip()


def _next(tokens: deque[str]) -> str:
    while tokens and tokens[0] == " ":
        tokens.popleft()
    return tokens[0] if tokens else ""
