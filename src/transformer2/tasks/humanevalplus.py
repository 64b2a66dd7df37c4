"""HumanEval+: the functions of HumanEval with about 80 times as many tests (evalplus/humanevalplus).

Example: the row of HumanEval/0 is that of `humaneval`, but its `check` compares several hundred inputs with the
results of a corrected reference solution (`for i, (inp, exp) in ...: assertion(candidate(*inp), exp, 0)`).
"""

from __future__ import annotations

from typing import ClassVar

from transformer2.tasks.humaneval import HumanEval

__all__ = ["TASK", "HumanEvalPlus"]


class HumanEvalPlus(HumanEval):
    """Functions from docstrings, tested harder."""

    name: ClassVar[str] = "humanevalplus"
    hub_id: ClassVar[str] = "evalplus/humanevalplus"
    pinned: ClassVar[str] = "d32357cf319e50e9c8d8dab5ea876c72b0fd321b"
    cpu_seconds: ClassVar[int] = 5


TASK = HumanEvalPlus
