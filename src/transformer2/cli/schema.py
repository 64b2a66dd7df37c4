"""The arguments of constructors, read from their source: nothing heavy is imported to list or check a config's keys."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Argument", "arguments", "classes", "members", "value_of"]


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor.

    Attributes:
        hint: Its type, with its range; a dict of Arguments where it is a dataclass of ours.
        default: Source of its default; None where it has none.
        line: The first sentence of its documentation.
    """

    hint: Any
    default: str | None
    line: str


@cache
def arguments(path: str) -> dict[str, Argument]:
    """The arguments of a class of ours or of Lightning, with those that it passes to its base as `**options`.

    Args:
        path: Where it is defined, or imported from: `package.module.Class`.

    Raises:
        LookupError: There is no source of such a class.
    """
    module, _, name = path.rpartition(".")
    names = _Names(module)
    cls = names.definition(name)
    if isinstance(cls, ast.ImportFrom):
        return arguments(names.path_of(name))
    if not isinstance(cls, ast.ClassDef):
        raise LookupError(path)
    lines = _lines_of(ast.get_docstring(cls) or "")
    init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None and not cls.decorator_list:
        return _of_bases(names, cls)
    if init is None:  # a dataclass
        fields = [n for n in cls.body if isinstance(n, ast.AnnAssign)]
        return {k: names.argument(k, f.annotation, f.value, lines) for f in fields for k in [ast.unparse(f.target)]}
    lines |= _lines_of(ast.get_docstring(init) or "")
    own, by_name = init.args.args[1:], init.args.kwonlyargs
    missing: list[ast.expr | None] = [None] * (len(own) - len(init.args.defaults))
    defaults = [*missing, *init.args.defaults, *init.args.kw_defaults]
    given = zip([*own, *by_name], defaults, strict=True)
    found = {a.arg: names.argument(a.arg, a.annotation, default, lines) for a, default in given}
    if init.args.kwarg is None:
        return found
    calls = [n for n in ast.walk(init) if isinstance(n, ast.Call) and ast.unparse(n.func) == "super().__init__"]
    fixed = {keyword.arg for call in calls for keyword in call.keywords}
    return {**{key: a for key, a in _of_bases(names, cls).items() if key not in fixed}, **found}


def _of_bases(names: _Names, cls: ast.ClassDef) -> dict[str, Argument]:
    """The arguments of the bases that can be looked up, as `super().__init__(**options)` hands them on."""
    found: dict[str, Argument] = {}
    for base in cls.bases:
        with suppress(LookupError):  # a third party's
            found = {**arguments(names.path_of(ast.unparse(base))), **found}
    return found


@cache
def classes(module: str) -> list[str]:
    """The names of public classes that a module defines or, if it defines none, imports."""
    body = _Names(module).body
    defined = [node.name for node in body if isinstance(node, ast.ClassDef)]
    imported = [a.asname or a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names]
    return [name for name in defined or imported if name[0].isupper()]


@cache
def members(module: str, name: str) -> list[str]:
    """The names that a class assigns to: an enum's members."""
    cls = _Names(module).definition(name)
    assert isinstance(cls, ast.ClassDef)
    return [ast.unparse(node.targets[0]) for node in cls.body if isinstance(node, ast.Assign)]


def value_of(path: str) -> Any:
    """A type or a constant of ours, evaluated without importing its module."""
    module, _, name = path.rpartition(".")
    return _Names(module)[name]


class _Names(dict[str, Any]):
    """What the names in a module's annotations stand for; `Any` where that leads out of this package."""

    def __init__(self, module: str) -> None:
        self.module = module
        root, *rest = module.split(".")
        spec = importlib.util.find_spec(root) if root else None
        if spec is None or not spec.submodule_search_locations:
            raise LookupError(module)
        file = Path(spec.submodule_search_locations[0]).joinpath(*rest)
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if not file.is_file():
            raise LookupError(module)
        self.body = ast.parse(file.read_text(encoding="utf-8")).body

    def definition(self, name: str) -> ast.stmt | None:
        """The statement that defines or imports a name."""
        for node in self.body:
            if isinstance(node, ast.Assign):
                found = [ast.unparse(target) for target in node.targets]
            elif isinstance(node, ast.ImportFrom):
                found = [alias.asname or alias.name for alias in node.names]
            else:
                found = [getattr(node, "name", "")]
            if name in found:
                return node
        return None

    def path_of(self, name: str) -> str:
        """The full path of a class that this module defines or imports."""
        node = self.definition(name)
        return f"{node.module if isinstance(node, ast.ImportFrom) else self.module}.{name}"

    def argument(self, name: str, hint: ast.expr | None, default: ast.expr | None, lines: dict[str, str]) -> Argument:
        """One argument from its syntax tree."""
        value = None if default is None else ast.unparse(default)
        try:
            known = Any if hint is None else self.evaluate(hint)
        except TypeError:  # torch's, of a name that is imported for type checkers alone: Any[...]
            known = Any
        return Argument(known, value, lines.get(name, ""))

    def evaluate(self, annotation: ast.expr) -> Any:
        """An annotation of ours as a type."""
        return eval(ast.unparse(annotation), {}, self)

    def __missing__(self, name: str) -> Any:
        node = self.definition(name)
        match node:
            case None:
                return getattr(builtins, name, Any)
            case ast.Assign():
                return self.evaluate(node.value)
            case ast.ImportFrom(module="typing" | "collections.abc" as module):
                return getattr(importlib.import_module(module), name)
            case ast.ImportFrom(module=str(module)) if module.startswith("transformer2"):
                return _Names(module)[name]
            case ast.ClassDef() if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                return arguments(f"{self.module}.{name}")
        return Any


def _lines_of(docstring: str) -> dict[str, str]:
    """First sentences of the entries under Args or Attributes."""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\w|\Z)", docstring, re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1], re.M | re.S) if section else []
    return {name: re.split(r"(?<!e\.g)\. ", " ".join(text.split()))[0].rstrip(".") for name, text in entries}
