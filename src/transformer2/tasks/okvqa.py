"""OK-VQA: questions about a picture that also take knowledge of the world; the paper's unseen vision task.

One row:

    question: What sport can you use this for?      image: {bytes, path}
    answers:  ["race", "race", "race", "race", "race", "race", "motocross", "motocross", "ride", "ride"]

`test` is val2014, 5,046 questions, from lmms-lab-encoder/OK-VQA (lmms-lab/OK-VQA before it moved), which has no other
split. `train`, 9,009 questions, is HuggingFaceM4/OK-VQA's, a data set with a loading script, which `datasets` runs no
more: give a copy (`okvqa/train.parquet` or `.jsonl` under data_dir), or take the shots from test: data.protocol paper.
"""

from __future__ import annotations

from typing import ClassVar

from transformer2.tasks._vqa import VQATask

__all__ = ["OKVQA", "TASK"]


class OKVQA(VQATask):
    """Pictures and what one knows."""

    name: ClassVar[str] = "okvqa"
    description: ClassVar[str] = "questions about a picture that take knowledge of the world"
    sources: ClassVar = {"train": ("HuggingFaceM4/OK-VQA", "train"), "test": ("lmms-lab-encoder/OK-VQA", "val2014")}


TASK = OKVQA
