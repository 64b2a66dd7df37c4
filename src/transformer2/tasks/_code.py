"""What the programming tasks share: a completion becomes a program, the sandbox runs it, its outcome is the verdict."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers.code import Outcome, Program, Sandbox, shared
from transformer2.verifiers.code.extract import extract_code
from transformer2.verifiers.isolated import batch_deadline

__all__ = ["CodeTask", "used_names"]

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
        allow_unsafe_code_execution: Run answers even where this system cannot wall them in. They could then read and
            change whatever you can.
        system: System message; None sends none.
        prompt: Template of the user message; None takes the task's own.
    """

    hub_id: ClassVar[str]
    pinned: ClassVar[str]
    cpu_seconds: ClassVar[int] = 2
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

    @property
    def sandbox(self) -> Sandbox:
        """The judges, started when first asked for and shared by all tasks of this process."""
        return shared(self.allow_unsafe_code_execution)

    def warm_up(self) -> None:
        """Start the judges, and refuse now rather than after the first rollout where nothing may be run."""
        self.sandbox.pool.start()
        self.sandbox.require()

    def isolation(self) -> str:
        """The level of isolation that answers are run under."""
        return self.sandbox.level

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the program in the completion passes every test."""
        (verdict,) = self.verify_many([example], [completion])
        return verdict

    def verify_many(
        self, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
    ) -> list[Verdict]:
        """Verdicts on many completions, run side by side."""
        codes = [_code_of(e, text) for e, text in zip(examples, completions, strict=True)]
        programs = [_program(e, code) for e, code in zip(examples, codes, strict=True) if code is not None]
        limit = 4.0 * max((p.cpu_seconds for p in programs), default=1)  # three of them are waiting
        deadline = deadline or batch_deadline(len(programs), limit, self.sandbox.pool.size)
        outcomes = iter(self.sandbox.run(programs, deadline))
        return [
            Verdict.of(False, None, "no program") if code is None else _verdict(code, next(outcomes)) for code in codes
        ]


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


def _code_of(example: Example, completion: str) -> str | None:
    return extract_code(completion, example.fields["names"], example.fields["prompt"])


def _program(example: Example, code: str) -> Program:
    fields = example.fields
    if fields["prompt"] and not code.startswith(fields["prompt"]):
        # The prompt's imports and helpers come first, where an answer repeats only the function.
        code = "".join([*_FUTURE.findall(code), fields["prompt"], "\n", _FUTURE.sub("", code)])
    return Program(code, fields["tests"], fields["names"], fields["setup"], fields["cpu_seconds"])


def _verdict(code: str, outcome: Outcome) -> Verdict:
    if outcome.outcome == "infra_error":
        return Verdict(None, False, code, f"infra_error: {outcome.reason}")
    passed = outcome.outcome == "passed"
    return Verdict.of(passed, code, outcome.reason if passed else f"{outcome.outcome}: {outcome.reason}")
