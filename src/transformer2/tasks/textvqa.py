"""TextVQA: questions that are answered by reading what is written in a picture; the paper's vision expert.

One row:

    question: what is the brand of this camera?      image_id: 003a8ae2ef43b901      image: {bytes, path}
    answers:  ["nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota", "dakota", "dakota", ...], ten

34,602 / 5,000 / 5,734 questions, from lmms-lab-encoder/textvqa (lmms-lab/textvqa before it moved). The answers of the
test split are empty, so `test` is the Hub's validation split, and `validation` is carved out of train (`VQATask`).
"""

from __future__ import annotations

from typing import ClassVar

from transformer2.tasks._vqa import VQATask

__all__ = ["TASK", "TextVQA"]

HUB_ID = "lmms-lab-encoder/textvqa"


class TextVQA(VQATask):
    """Reading in pictures."""

    name: ClassVar[str] = "textvqa"
    description: ClassVar[str] = "questions about a picture, answered by what is written in it"
    sources: ClassVar = {"train": (HUB_ID, "train"), "test": (HUB_ID, "validation")}


TASK = TextVQA
