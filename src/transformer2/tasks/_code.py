"""What the programming tasks share: a completion becomes a program, the sandbox runs it, its outcome is the verdict."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable
from typing import Any, ClassVar

from transformer2.errors import DataError
from transformer2.sandbox import Program
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers import verify_all
from transformer2.verifiers.code import extract_code

__all__ = ["SYSTEM", "CodeTask", "check_tests", "fields_of", "in_block", "program_of", "used_names"]

_BUILTINS = {*dir(builtins)} - {"exit", "quit"}
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)  # Python wants it before everything else
SYSTEM = "You are an expert Python programmer."


class CodeTask(Task):
    """A task whose answers are run.

    An example's fields: `tests` (trusted sources), `names` (what of the answer they use), `setup` (trusted source run
    before them), `prompt` (source that the answer continues; empty where there is none) and `cpu_seconds`.

    Attributes:
        hub_id: Hub data set.
        pinned: The commit of it that public code pins.
        cpu_seconds: CPU time of one answer over all its tests.
        wording_fields: Fields of the template of the user message.
        user: That template, where no option says otherwise.

    Args:
        revision: Commit of the Hub data set; None takes the pinned one.
        allow_unsafe_code_execution: Run answers even where this system cannot isolate them. They could then read and
            change whatever you can.
        system: System message; None sends none.
        prompt: Template of the user message; None takes the task's own.
    """

    hub_id: ClassVar[str]
    pinned: ClassVar[str]
    cpu_seconds: ClassVar[int] = 2
    verify_in = "sandbox"
    wording_fields: ClassVar[tuple[str, ...]] = ("question",)
    user: ClassVar[str]

    def __init__(
        self,
        revision: str | None = None,
        allow_unsafe_code_execution: bool = False,
        system: str | None = SYSTEM,
        prompt: str | None = None,
    ) -> None:
        self.revision = revision or self.pinned
        self.allow_unsafe_code_execution = allow_unsafe_code_execution
        self.wording = Wording(self.name, system, self.user if prompt is None else prompt, self.wording_fields)

    def program(self, example: Example, completion: str) -> Program | None:
        """The program in a completion, with the tests that it has to pass."""
        return program_of(example, completion)

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the program in the completion passes every test."""
        (verdict,) = verify_all(self, [example], [completion])
        return verdict

    def solution(self, example: Example) -> str | None:
        """The reference solution, whole, in one Markdown code block; None where the row has none."""
        return in_block(example.fields["prompt"] + example.answer) if example.answer.strip() else None


def in_block(code: str) -> str:
    """Code as an answer: in one Markdown code block."""
    lines = code.replace("\r\n", "\n").strip("\n")
    return f"```python\n{lines}\n```"


def fields_of(
    tests: Iterable[str], names: tuple[str, ...], setup: str = "", prompt: str = "", cpu_seconds: int = 2
) -> dict[str, Any]:
    """An example's fields; see `CodeTask`."""
    return {"tests": tuple(tests), "names": names, "setup": setup, "prompt": prompt, "cpu_seconds": cpu_seconds}


def program_of(example: Example, completion: str) -> Program | None:
    """The program in a completion, with the tests that it has to pass; None when there is none."""
    fields = example.fields
    code = extract_code(completion, fields["names"], fields["prompt"])
    if code is None:
        return None
    if fields["prompt"] and not code.startswith(fields["prompt"]):
        # The prompt's imports and helpers come first, where an answer repeats only the function.
        code = "".join([*_FUTURE.findall(code), fields["prompt"], "\n", _FUTURE.sub("", code)])
    return Program(code, fields["tests"], fields["names"], fields["setup"], fields["cpu_seconds"])


def used_names(tests: Iterable[str], reference: str, where: str) -> tuple[str, ...]:
    """What the tests use of an answer: names that they read and that the reference solution defines.

    Raises:
        DataError: Unreadable source, or tests that use nothing of the solution.
    """
    try:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        defined = {node.name for node in ast.parse(reference).body if isinstance(node, kinds)}
        read = {n.id for t in tests for n in ast.walk(ast.parse(t)) if isinstance(n, ast.Name)}
    except SyntaxError as e:
        raise DataError(f"{where}: its code or tests are no Python ({e}); correct or drop the row") from e
    names = tuple(sorted(defined & read))
    if not names:
        raise DataError(f"{where}: its tests use nothing that its code defines; correct or drop the row")
    return names


def check_tests(tests: Iterable[str], names: tuple[str, ...], where: str) -> None:
    """Refuse tests that every program passes which runs at all.

    Raises:
        DataError: One only compares, is a tuple or a function that nothing calls, or none asserts anything.
    """
    nodes = [node for test in tests for node in ast.parse(test).body]
    parts = [part for node in nodes for part in ast.walk(node)]
    read = {part.id for part in parts if isinstance(part, ast.Name)}
    defined = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    for node in defined:
        # One with parameters is a helper that another row's tests may call, unless a decorator fills them in.
        helps = not isinstance(node, ast.ClassDef) and node.args.args and not node.decorator_list
        if node.name not in read and not helps and any(isinstance(part, ast.Assert) for part in ast.walk(node)):
            raise DataError(f"{where}: nothing calls its test {node.name!r:.60}; call it, or give its asserts alone")
    # What a definition holds is not run by that, nor what is for scripts alone.
    run = [n for n in nodes if n not in defined and not (isinstance(n, ast.If) and "__name__" in ast.unparse(n.test))]
    failing = [node for node in run if any(_may_fail(part, names) for part in ast.walk(node))]
    # A comparison fails nothing, whatever it calls; `f(1) == 2 or exit(1)` does. Nor does `assert (f(1) == 2, "text")`.
    values = [(node.value, node in failing) for node in nodes if isinstance(node, ast.Expr)]
    never = (ast.Compare, ast.UnaryOp)
    idle: list[ast.AST] = [v for v, may in values if isinstance(v, never if may else (*never, ast.BoolOp))]
    idle += [part for part in parts if isinstance(part, ast.Assert) and isinstance(part.test, ast.Tuple)]
    if idle or not failing:
        what = f"its test {ast.unparse(idle[0])!r:.60} asserts nothing" if idle else "its tests assert nothing"
        raise DataError(f"{where}: {what}; write `assert` before what has to hold")


def _may_fail(node: ast.AST, names: tuple[str, ...]) -> bool:
    """Whether a test's node can find fault with an answer: an assertion, or a call of something that may hold one."""
    if isinstance(node, ast.Assert):
        return not (isinstance(node.test, ast.Constant) and node.test.value)
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Raise)
    called: ast.AST = node.func
    while isinstance(called, (ast.Attribute, ast.Call)):
        called = called.func if isinstance(called, ast.Call) else called.value
    return isinstance(called, ast.Name) and called.id not in names and called.id not in _BUILTINS
