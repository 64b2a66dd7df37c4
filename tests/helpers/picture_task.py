"""A task whose questions are pictures: where its number is even, the answer must begin with an early letter."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vision_bases import drawn

from transformer2.pictures import PictureFile
from transformer2.tasks import Task
from transformer2.types import Example, Verdict

SIZES = ((80, 50), (40, 90), (64, 64))


class Pictures(Task):
    """`draw_pictures` makes the files of a `data_dir`."""

    name: ClassVar[str] = "pictures"
    description: ClassVar[str] = "pictures of nothing"
    max_new_tokens: ClassVar[int] = 4
    pictures: ClassVar[int] = 1
    verify_in = "inline"

    def examples(self, split, data_dir=None):
        rows = {"train": range(0, 16), "validation": range(16, 24), "test": range(24, 32)}[split]
        asked = ({"role": "user", "content": "How many?"},)
        return [
            Example(f"pictures/{split}/{i}", asked, str(i % 2), images=(PictureFile(str(Path(data_dir) / f"{i}.png")),))
            for i in rows
        ]

    def verify(self, example, completion):
        early = bool(completion) and completion[0].lower() < "n"
        return Verdict.of(early == (example.answer == "0"), completion[:1] or None, "first letter")

    def solution(self, example):
        return "A" if example.answer == "0" else "Pick"  # words of the tokenizer of the small bases


def draw_pictures(folder: Path, count: int = 32, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """Pictures 0.png, 1.png, ... of these sizes in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        drawn(i, sizes[i % len(sizes)]).save(folder / f"{i}.png")
    return folder
