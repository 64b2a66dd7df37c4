"""easy-VQA: what a picture of one coloured shape shows; real rows that come as a Python package (MIT).

Example:
    question: what color is the triangle?    answer: blue    (a picture of 64 x 64; 13 answers, three in four yes or no)

4,000 pictures with 38,575 questions to train on, 1,000 with 9,673 to test; one training picture in ten validates. Three
questions in four have a likely answer whatever the picture shows: look at the report's controls.
"""

from __future__ import annotations

import importlib
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.pictures import PictureFile
from transformer2.tasks._answers import KINDS
from transformer2.tasks._rows import in_split
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict

__all__ = ["EasyVQA"]

VALIDATION_SHARE = 10  # one picture in so many


class EasyVQA(Task):
    """Shapes and colours.

    Inline: an answer is compared with one word.

    Args:
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`; the picture stands before it.
    """

    name: ClassVar[str] = "easy_vqa"
    description: ClassVar[str] = "the shape and the colour in a small picture; answered with one word"
    max_new_tokens: ClassVar[int] = 8
    pictures: ClassVar[int] = 1
    verify_in = "inline"

    def __init__(self, system: str | None = None, prompt: str = "{question}\nAnswer with one word.") -> None:
        self.wording = Wording(self.name, system, prompt, ("question",))

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in the order of the package; `data_dir` is not used."""
        self.check_split(split)
        try:
            package = importlib.import_module("easy_vqa")
        except ImportError as e:
            raise DataError(
                "task easy_vqa needs the package easy-vqa; pip install --no-deps easy-vqa (its rows are in it)"
            ) from e
        source = "test" if split == "test" else "train"
        rows = zip(*getattr(package, f"get_{source}_questions")(), strict=True)
        paths = getattr(package, f"get_{source}_image_paths")()
        examples = []
        for i, (question, answer, image) in enumerate(rows):
            if in_split(split, str(image), VALIDATION_SHARE):
                messages = self.wording.messages(question=question)
                picture = PictureFile(str(paths[image]))
                examples.append(Example(f"easy_vqa/{split}/{i}", messages, answer, images=(picture,)))
        return examples

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the completion is the answer and nothing else."""
        return KINDS["exact"].verify(example, completion)

    def solution(self, example: Example) -> str:
        """The word."""
        return example.answer
