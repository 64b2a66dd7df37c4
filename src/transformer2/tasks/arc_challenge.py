"""ARC-Challenge: the science questions that retrieval and word counts get wrong (allenai/ai2_arc, ARC-Challenge).

One row:

    question:  George wants to warm his hands quickly by rubbing them. Which skin surface will produce the most heat?
    choices:   text: dry palms, wet palms, palms covered with oil, palms covered with lotion; label: A, B, C, D
    answerKey: A

Prompt and verdict as in arc_easy. Splits of the Hub: train 1119, validation 299, test 1172. An unseen task of the
paper: nothing is trained here. Protocol `clean` takes the few shots from train; `paper` takes them from the test split,
as the reference code does (`UnseenTaskDataModule`).
"""

from __future__ import annotations

from typing import ClassVar

from transformer2.tasks._arc import ARC

__all__ = ["TASK", "ARCChallenge"]


class ARCChallenge(ARC):
    """The challenge set."""

    name: ClassVar[str] = "arc_challenge"
    description: ClassVar[str] = "harder reasoning about science: a choice among lettered options"
    config: ClassVar[str] = "ARC-Challenge"


TASK = ARCChallenge
