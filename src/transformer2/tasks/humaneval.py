"""HumanEval and HumanEval+: 164 functions to be completed from their signature and docstring.

One row:

    task_id:     HumanEval/0
    prompt:      from typing import List
                 def has_close_elements(numbers: List[float], threshold: float) -> bool:
                     \"\"\" Check if in given list of numbers, are any two numbers closer to each other than ...
    entry_point: has_close_elements
    test:        def check(candidate):
                     assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
                     ...

Right means: every assertion of the row's tests holds for the function that the completion defines, run in the sandbox.
An unseen task of the paper, with a test split alone: the datamodule takes the few-shot rows out of what is scored.
"""

from __future__ import annotations

import ast
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.tasks._code import CodeTask, fields_of
from transformer2.tasks._rows import Row, examples_of, field_of, load_rows
from transformer2.types import Example

__all__ = ["HumanEval", "HumanEvalPlus"]


class HumanEval(CodeTask):
    """The original (openai/openai_humaneval). Example: the row above."""

    name: ClassVar[str] = "humaneval"
    description: ClassVar[str] = "programming: a Python function to be completed from its docstring"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    max_new_tokens: ClassVar[int] = 512
    hub_id: ClassVar[str] = "openai/openai_humaneval"
    pinned: ClassVar[str] = "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"
    user: ClassVar[str] = (
        "Complete this Python function. Answer with the whole function, and the imports that it needs, "
        "in one Markdown code block.\n\n```python\n{question}\n```"
    )

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All functions, in the order of the source."""
        self.check_split(split)
        rows = load_rows(self.name, split, data_dir, self.hub_id, revision=self.revision)
        return examples_of(rows, lambda i, row: self._example(row, f"{self.name}/{split}/{i}"))

    def _example(self, row: Row, where: str) -> Example:
        prompt, entry, test = (field_of(row, key, where) for key in ("prompt", "entry_point", "test"))
        if f"def {entry}(" not in prompt:
            raise DataError(f"{where}: field 'prompt' does not begin {entry!r:.60}; correct or drop the row")
        ast.parse(prompt), ast.parse(test)  # under tests that are no Python every answer would be wrong
        solution = field_of(row, "canonical_solution", where) if "canonical_solution" in row else ""
        messages = self.wording.messages(question=prompt.strip())
        # Helpers of the prompt belong to the tests too (three rows use them), which call the function by its name.
        tests = (f"{test}\n\ncheck({entry})\n",)
        return Example(where, messages, solution, fields_of(tests, (entry,), prompt, prompt, self.cpu_seconds))


class HumanEvalPlus(HumanEval):
    """The same functions with about 80 times as many tests (evalplus/humanevalplus).

    Example: the row of HumanEval/0 is that of `humaneval`, but its `check` compares several hundred inputs with the
    results of a corrected reference solution (`for i, (inp, exp) in ...: assertion(candidate(*inp), exp, 0)`).
    """

    name: ClassVar[str] = "humanevalplus"
    hub_id: ClassVar[str] = "evalplus/humanevalplus"
    pinned: ClassVar[str] = "d32357cf319e50e9c8d8dab5ea876c72b0fd321b"
    cpu_seconds: ClassVar[int] = 5
