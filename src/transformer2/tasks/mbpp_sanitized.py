"""Sanitized MBPP: 427 tasks of MBPP, checked by its authors (google-research-datasets/mbpp, config sanitized).

Example (task 2): "Write a function to find the shared elements from the given two lists.", tested by
`assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))` and two more.
"""

from __future__ import annotations

from typing import ClassVar

from transformer2.tasks.mbpp import MBPP

__all__ = ["TASK", "SanitizedMBPP"]


class SanitizedMBPP(MBPP):
    """Functions from a sentence and a test, checked by hand."""

    name: ClassVar[str] = "mbpp_sanitized"
    config: ClassVar[str | None] = "sanitized"


TASK = SanitizedMBPP
