"""From a completion to the program in it.

Instruct models write prose around Markdown blocks, base models continue where the prompt stops. In this order:

1. the last complete block, fenced or not, that defines one of the wanted names (earlier ones are drafts, later ones
   examples of use), with what it needs of the other blocks: imports, helpers, constants;
2. a continuation: the prompt followed by a function's body, however that is indented.

What is a program, the parser decides: prose before and after is dropped line by line. Nothing is repaired: an answer
that was cut off stays cut off, and fails. Left out are the answer's own uses of the function that follow it.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Sequence
from itertools import chain

from transformer2.verifiers.final import without_reasoning

__all__ = ["extract_code"]

MAX_CHARACTERS = 50_000  # beyond it nobody answers one of these questions, and parsing takes seconds
MAX_CUTS = 8  # a parse takes up to a tenth of a second
MAX_STARTS = 4
_PYTHON = ("", "python", "py", "python3", "py3", "ipython", "pycon", "python-repl")
_FENCE = re.compile(r"^[ \t]*(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[^\n`]*$", re.MULTILINE)
_GLUED = re.compile(r"(?<=[^\s`])(`{3,})[ \t]*$", re.MULTILINE)  # the end of a block, on its last line
_CODE_LINE = re.compile(
    r"(?:from\s+\S+\s+import\b|import\s+\w|def\s+\w|async\s+def\s|class\s+\w|@\w|[A-Za-z_]\w*\s*=[^=])"
)
_STATEMENT = re.compile(r"\s*(?:return|for|while|if|with|try|[A-Za-z_]\w*\s*[-+*/|&]?=[^=])")
_RETURN = re.compile(r"^\s*(?:return|yield)\b", re.MULTILINE)
_SECTION = re.compile(r"^\[/?(?:BEGIN|DONE|PYTHON)\][ \t]*$", re.MULTILINE)  # what MBPP's authors and Code Llama write
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom)
_REPL = re.compile(r"^(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)


def extract_code(completion: str, names: Sequence[str], prompt: str = "") -> str | None:
    """The program, or None when there is none.

    Args:
        completion: The model's text.
        names: What the program has to define; one of them is enough here, the tests want all.
        prompt: Source that a continuation would continue; empty when the task has none.
    """
    if len(completion) > MAX_CHARACTERS:
        return None
    text = _SECTION.sub("```", without_reasoning(completion).replace("\r\n", "\n"))
    text = _GLUED.sub(r"\n\1", text)
    either = "|".join(map(re.escape, names))
    written = re.compile(
        rf"^(?:[ \t]*(?:>>> )?(?:async\s+def|def|class)\s+(?:{either})\b|(?:{either})\s*=\s*lambda\b)", re.MULTILINE
    )
    blocks = [_typed(textwrap.dedent(block)) for block in _blocks(text, written, prompt)]
    fenced = bool(blocks)
    if fenced:  # without prose within a block
        mixed = [written.search(block) and not _parse(block) for block in blocks]
        parts = [_unfenced(b, names, written) if m else [b] for b, m in zip(blocks, mixed, strict=True)]
        blocks = list(chain.from_iterable(parts))
    elif written.search(text):
        blocks = _unfenced(_typed(text), names, written)
    trees = [_parse(block) for block in blocks]
    complete = [i for i, tree in enumerate(trees) if tree and _definition(tree, names)]
    if complete:
        return _finished(blocks, trees, complete[-1], names)
    cut_off = [block for block in blocks if written.search(block)]
    if cut_off:
        return cut_off[-1]
    if prompt and text.strip():
        bodies = [block for block in blocks if _RETURN.search(block)] or blocks  # others are examples of use
        source, rest = _continued(prompt, bodies[-1] if fenced else text)
        sources = [*blocks, "\n".join(_parsing(rest.split("\n"), 0)), source]
        return _finished(sources, [_parse(s) for s in sources], len(sources) - 1, names)
    return blocks[-1] if fenced else None


def _blocks(text: str, written: re.Pattern[str], prompt: str) -> list[str]:
    """Contents of the fenced blocks: an open one goes to the end, one that is only closed starts with the text."""
    found: list[str] = []
    start, marks, language = None, "", ""
    for number, fence in enumerate(_FENCE.finditer(text)):
        named = fence["language"].lower()
        if start is not None:
            block = text[start : fence.start()]
            if fence["marks"][0] != marks[0] or block.count('"""') % 2 or block.count("'''") % 2:
                continue  # of the other kind, or within a docstring
            found += [block] if language in _PYTHON or written.search(block) else []
            start = fence.end() + 1 if named and named in _PYTHON else None
            marks, language = fence["marks"], named
        elif number == 0 and not named and _is_code(text[: fence.start()], written, prompt):
            found.append(text[: fence.start()])
        else:
            start, marks, language = fence.end() + 1, fence["marks"], named
    if start is not None and (language in _PYTHON or written.search(text, start)):
        found.append(text[start:])
    return [block for block in found if block.strip()]


def _is_code(head: str, written: re.Pattern[str], prompt: str) -> bool:
    if written.search(head):
        return True
    lines = [line for line in head.split("\n") if line.strip()]
    if not prompt or not any(_STATEMENT.match(line) for line in lines):
        return False
    source, rest = _continued(prompt, head)
    return not rest.strip() and _parse(source) is not None


def _typed(block: str) -> str:
    """What was typed in a transcript of the interpreter; anything else as it is."""
    if not _REPL.search(block) or _parse(block):
        return block
    return "\n".join(line[4:] for line in block.split("\n") if _REPL.match(line))


def _unfenced(text: str, names: Sequence[str], written: re.Pattern[str]) -> list[str]:
    """The runs of lines that are a program and define a wanted name, else all from the first line of code."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if _CODE_LINE.match(line)]
    indented = [i for i, line in enumerate(lines) if line[:1].isspace() and _CODE_LINE.match(line.lstrip())]
    # The last definitions count, so a long text is tried from its last ones too.
    defined = [i for i in starts if written.match(lines[i])][-MAX_STARTS:]
    found: list[str] = []
    end = 0
    for start in sorted({*starts[:MAX_STARTS], *defined}) + indented[:MAX_STARTS]:
        if start < end or (found and start not in defined):
            continue
        indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
        stop = next((i for i in range(start, len(lines)) if lines[i].strip() and not lines[i].startswith(indent)), None)
        code = _parsing(textwrap.dedent("\n".join(lines[start:stop])).split("\n"))
        tree = _parse("\n".join(code))
        if tree and _definition(tree, names):
            found.append("\n".join(code))
            end = start + len(code)
        if found and start in indented:
            break
    return found or ["\n".join(lines[starts[0] if starts else 0 :])]


def _parsing(code: list[str], start: int = 1) -> list[str]:
    """Lines without those from the statement on that does not parse; `start` is the first that may go."""
    for _ in range(MAX_CUTS):
        if (wrong := _first_wrong_line("\n".join(code))) is None:
            return code
        first = min((len(line) - len(line.lstrip()) for line in code[start:] if line.strip()), default=0)
        at = [i for i in range(start, min(wrong, len(code))) if code[i][first : first + 1].strip()]
        if not at:
            break
        code = code[: at[-1]]
    return code


def _continued(prompt: str, text: str) -> tuple[str, str]:
    """The prompt with the body that a text holds, indented as the prompt wants it, and what follows that body."""
    head = prompt.rstrip("\n").split("\n")
    unit = re.match(r"[ \t]*", head[-1]).group() or "    "  # type: ignore[union-attr]  # it matches nothing as well
    lines = text.strip("\n").split("\n")
    dedented = textwrap.dedent(text.strip("\n")).split("\n")
    end = next((i for i, line in enumerate(lines) if i and line.strip() and not line[0].isspace()), len(lines))
    bodies = [
        (lines[:end], lines[end:]) if lines[0][:1].isspace() else ([], lines),
        ([unit + lines[0], *lines[1:end]], lines[end:]),  # the first line alone lost its indentation
        ([unit + line if line.strip() else line for line in dedented], []),
    ]
    tried = []
    for body, rest in bodies:
        kept = _parsing([*head, *body], len(head))
        count = sum(1 for line in kept[len(head) :] if line.strip())
        parses = _parse("\n".join(kept)) is not None
        tried.append((parses, count, "\n".join(kept), "\n".join([*body[len(kept) - len(head) :], *rest])))
    best = max(tried, key=lambda t: t[:2])
    return best[2:] if best[0] and best[1] else ("\n".join([*head, *(bodies[0][0] or bodies[1][0])]), "")


def _finished(blocks: list[str], trees: Sequence[ast.Module | None], index: int, names: Sequence[str]) -> str:
    """A block after what it needs of the others, without what it does with its own function afterwards."""
    source, tree = blocks[index], trees[index]
    if tree is None:
        return source
    definition = _definition(tree, names)
    lines = source.split("\n")
    for node in reversed(_uses(tree, definition, names) if definition else []):
        if node.col_offset == 0 and ";" not in lines[node.lineno - 1]:
            del lines[node.lineno - 1 : node.end_lineno]
    source = "\n".join(lines)
    if isinstance(definition, ast.ClassDef) and definition.name not in names:  # class Solution
        methods = {n.name for n in definition.body if isinstance(n, _FUNCTIONS)}
        source += "".join(f"\n{name} = {definition.name}().{name}" for name in names if name in methods) + "\n"
    nearest = [*range(index - 1, -1, -1), *range(index + 1, len(blocks))]
    candidates = [(i, node) for i in nearest if (other := trees[i]) for node in reversed(other.body)]
    needed: dict[tuple[int, int], str] = {}
    missing = _missing(tree)
    while missing:
        name = missing.pop()
        for i, node in candidates:
            if name in _bound(node):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
                piece = "\n".join(blocks[i].split("\n")[first - 1 : node.end_lineno])
                if (i, first) not in needed and (found := _parse(piece)):
                    needed[i, first] = piece
                    missing |= _missing(found)
                break
    return "\n".join([*(needed[key] for key in sorted(needed)), source]) if needed else source


def _uses(tree: ast.Module, definition: ast.stmt, names: Sequence[str]) -> list[ast.stmt]:
    """Statements behind a definition that only try it out: nothing that is defined reads what they may change."""
    kept = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    needed = {*names}.union(*(_names(node, ast.Load) - _names(node, ast.Store) for node in kept))
    data = needed & {name for node in tree.body if node not in kept for name in _bound(node)} - {*names}
    tried = {*names, "print", "input"}
    functions = [n for n in kept if isinstance(n, _FUNCTIONS) and not _reaches_out(n, data)]
    tried |= {n.name for n in functions if not {*names}.isdisjoint(_names(n, ast.Load))}
    found = []
    for node in tree.body:
        if node.lineno > definition.lineno and node not in kept and _names(node, ast.Load) & tried:
            stored = _names(node, ast.Store)
            changed = stored & needed or _names(node, ast.Load) & data or any(map(_changes, ast.walk(node)))
            if isinstance(node, (ast.Assert, ast.Expr)) or not changed:
                found.append(node)
                tried |= stored
    return found


def _reaches_out(function: ast.stmt, data: set[str]) -> bool:
    """Whether a call of a function may change what is not its own."""
    own, parts = _names(function, ast.Store), [*ast.walk(function)]
    places = [n.value for n in parts if isinstance(n, (ast.Attribute, ast.Subscript)) and _changes(n)]
    outer = {n.id for place in places for n in ast.walk(place) if isinstance(n, ast.Name)} - own
    return bool(outer or _names(function, ast.Load) & data) or any(isinstance(n, ast.Global) for n in parts)


def _changes(node: ast.AST) -> bool:
    """Whether a part of a statement changes an object, or defines something."""
    place = isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store)
    return place or isinstance(node, _DEFINITIONS)


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Names that a piece of a program reads (Load), or binds (Store), its arguments included."""
    parts = [*ast.walk(node)]
    arguments = {n.arg for n in parts if isinstance(n, ast.arg) and context is ast.Store}
    return arguments | {n.id for n in parts if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def _definition(tree: ast.Module, names: Sequence[str]) -> ast.stmt | None:
    """The last statement that defines a wanted name, or a class with a method of that name; no mere stub."""
    methods = None
    for node in reversed(tree.body):
        if isinstance(node, _FUNCTIONS):
            if node.name in names and not all(_is_stub(n) for n in node.body):
                return node
        elif _bound(node) & set(names) and not isinstance(node, (ast.Import, ast.ImportFrom)):
            return node
        elif isinstance(node, ast.ClassDef) and any(isinstance(n, _FUNCTIONS) and n.name in names for n in node.body):
            methods = methods or node
    return methods


def _is_stub(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return _names(node, ast.Store)
    return set()


def _missing(tree: ast.Module) -> set[str]:
    """Names that a program reads and nothing in it defines."""
    read: set[str] = set()
    defined = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.stmt):
            defined |= _bound(node)
    return read - defined


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _first_wrong_line(source: str) -> int | None:
    """Number of the line, from 1, at which the source stops being Python; None when it is."""
    try:
        ast.parse(source)
    except SyntaxError as e:
        return e.lineno or 1
    except (ValueError, MemoryError, RecursionError):
        return 1
    return None
