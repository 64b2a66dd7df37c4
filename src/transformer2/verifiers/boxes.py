r"""Where a box ends: `\boxed{5}` at its brace, `\boxed5` and `\boxed\frac12` at the end of what they hold."""

from __future__ import annotations

import re

__all__ = ["BOX", "MAX_BOX", "argument", "boxes", "closing_braces"]

MAX_BOX = 512  # characters: no answer is longer

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,9}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(
    r"[-+]?(?:\d+(?:[.,]\d+)*|\\[dt]?frac\s*(?:\d|\{[^{}]*\})\s*(?:\d|\{[^{}]*\})|\\[A-Za-z]+(?:\{[^{}]*\})?)"
    r"|[(\[]?[A-Za-z](?![A-Za-z])[)\]]?"
)


def boxes(text: str) -> list[str]:
    """What stands in each closed box, in order."""
    ends = closing_braces(text)
    spans = (argument(text, box.end(), ends) for box in BOX.finditer(text))
    return [text[slice(*span)].strip() for span in spans if span]


def closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed ends, by the place behind it."""
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    return ends


def argument(text: str, start: int, ends: dict[int, int]) -> tuple[int, int] | None:
    """From where to where the argument of a box goes; None where it is cut off or too long."""
    if text[start : start + 1] == "{":
        stop = ends.get(start + 1, len(text))
        return (start + 1, stop) if stop <= start + 1 + MAX_BOX and stop < len(text) else None
    return bare.span() if (bare := _BARE.match(text, start)) else None
