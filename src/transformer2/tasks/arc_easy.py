"""ARC-Easy: grade-school science questions with lettered options (allenai/ai2_arc, config ARC-Easy).

One row:

    question:  Which piece of safety equipment is used to keep mold spores from entering the respiratory system?
    choices:   text: safety goggles, breathing mask, rubber gloves, lead apron; label: A, B, C, D
    answerKey: B

The model sees the question and its options as (A) to (D) and is asked to end on "The answer is (X)". Right means: its
last final answer is B. Splits of the Hub: train 2251, validation 570, test 2376. The paper trains its reasoning expert
here; so do we, and both protocols are the same: train, choose on validation, score test once.
"""

from __future__ import annotations

from typing import ClassVar

from transformer2.tasks._arc import ARC

__all__ = ["TASK", "ARCEasy"]


class ARCEasy(ARC):
    """The easy set."""

    name: ClassVar[str] = "arc_easy"
    description: ClassVar[str] = "reasoning about science: a choice among lettered options"
    config: ClassVar[str] = "ARC-Easy"


TASK = ARCEasy
