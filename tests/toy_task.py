"""A task of the tests' own, named in configs by its class path: the answer must begin with an early letter."""

from typing import ClassVar

from transformer2.tasks import Task
from transformer2.types import Example, Verdict


class FirstLetter(Task):
    """Right when the first byte of the completion is below the middle of the alphabet of bytes."""

    name: ClassVar[str] = "first_letter"
    description: ClassVar[str] = "begin with an early letter"
    max_new_tokens: ClassVar[int] = 4

    def examples(self, split, data_dir=None):
        numbers = {"train": range(0, 64), "validation": range(64, 80), "test": range(80, 96)}[split]
        return [
            Example(f"first_letter/{split}/{i}", ({"role": "user", "content": f"say {i}"},), "early") for i in numbers
        ]

    def verify(self, example, completion):
        return Verdict.of(bool(completion) and ord(completion[0]) < ord("h"), completion[:1], "first letter")


class Broken(FirstLetter):
    """Its verifier fails on some rows."""

    broken: ClassVar[int] = 0

    def verify(self, example, completion):
        if int(example.id.rpartition("/")[2]) < self.broken:
            raise RuntimeError("no answer key")
        return super().verify(example, completion)
