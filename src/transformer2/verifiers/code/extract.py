"""From a completion to the program in it.

Instruct models write prose around Markdown blocks, base models go on where the prompt stops. In this order:

1. the last fenced block that defines one of the wanted names (earlier ones are drafts, later ones examples of use);
2. text without a fence, from its first line of code to the last line with which it still parses;
3. a continuation: the prompt followed by the text (or the last block), up to where its indentation ends.

Nothing is mended: a block that was cut off stays cut off, and fails.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

__all__ = ["extract_code"]

MAX_CHARACTERS = 50_000  # beyond it nobody answers one of these questions, and parsing takes seconds
MAX_CUTS = 8  # a parse takes up to a tenth of a second
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_CODE_LINE = re.compile(
    r"^(?:from\s+\S+\s+import\b|import\s+\w|def\s+\w|async\s+def\s|class\s+\w|@\w|[A-Za-z_]\w*\s*=[^=])"
)


def extract_code(completion: str, names: Sequence[str], prompt: str = "") -> str | None:
    """The program, or None when there is none.

    Args:
        completion: The model's text.
        names: What the program has to define; one of them is enough here, the tests want all.
        prompt: Source that a continuation would continue; empty when the task has none.
    """
    if len(completion) > MAX_CHARACTERS:
        return None
    wanted = re.compile(rf"^[ \t]*(?:async\s+def|def|class)\s+(?:{'|'.join(map(re.escape, names))})\b", re.MULTILINE)
    blocks = _blocks(completion)
    defining = [b for b in blocks if wanted.search(b)]
    if defining:
        return defining[-1]
    if blocks:
        return _continued(prompt, blocks[-1]) if prompt else blocks[-1]
    if wanted.search(completion):
        return _unfenced(completion)
    return _continued(prompt, completion) if prompt and completion.strip() else None


def _blocks(text: str) -> list[str]:
    """Contents of the fenced blocks, without their common indentation; an open block goes to the end."""
    blocks, start, language = [], None, ""
    for fence in _FENCE.finditer(text):
        if start is None:
            start, language = fence.end() + 1, fence[1].lower()
        else:
            if language in ("", "python", "py", "python3"):
                blocks.append(text[start : fence.start()])
            start = None
    if start is not None and language in ("", "python", "py", "python3"):
        blocks.append(text[start:])
    return [_dedented(b) for b in blocks if b.strip()]


def _dedented(block: str) -> str:
    lines = block.split("\n")
    indent = min((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), default=0)
    # A block inside a list item is indented as a whole; a function's body is not to lose its own indentation.
    return "\n".join(line[indent:] for line in lines) if _CODE_LINE.match(block.lstrip("\n").lstrip(" ")) else block


def _unfenced(text: str) -> str:
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if _CODE_LINE.match(line)), 0)
    code = lines[first:]
    for _ in range(MAX_CUTS):
        if (wrong := _first_wrong_line("\n".join(code))) is None:
            return "\n".join(code)
        # Prose begins at the last statement that starts at or before the line that does not parse.
        cut = next((i for i in range(min(wrong, len(code)) - 1, 0, -1) if code[i][:1].strip()), 0)
        if cut == 0:
            break
        code = code[:cut]
    return "\n".join(lines[first:])


def _continued(prompt: str, text: str) -> str:
    body = text if text.startswith((" ", "\t", "\n")) else f"    {text}"
    kept: list[str] = []
    for line in body.split("\n"):
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return prompt.rstrip("\n") + "\n" + "\n".join(kept)


def _first_wrong_line(source: str) -> int | None:
    """Number of the line, from 1, at which the source stops being Python; None when it is."""
    try:
        ast.parse(source)
    except SyntaxError as e:
        return e.lineno or 1
    except (ValueError, MemoryError, RecursionError):
        return 1
    return None
