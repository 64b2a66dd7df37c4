"""A task of the tests' own about drawn pictures: a score between right and wrong by the completion's first byte."""

import io
from dataclasses import replace
from typing import ClassVar

from PIL import Image
from toy_task import FirstLetter

from transformer2.pictures import PictureBytes
from transformer2.types import Verdict


class SoftPictures(FirstLetter):
    """Two questions about pictures of one colour each; every fourth row has none."""

    name: ClassVar[str] = "soft_pictures"
    verify_in = "inline"

    def examples(self, split, data_dir=None):
        return [self._pictured(i, example) for i, example in enumerate(super().examples(split))]

    def _pictured(self, i, example):
        buffer, number = io.BytesIO(), int(example.id.rpartition("/")[2])
        Image.new("RGB", (40, 40), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(buffer, "PNG")
        images = () if i % 4 == 3 else (PictureBytes(buffer.getvalue(), example.id),)
        answer = "a" if i % 2 or i % 3 else "c"
        return replace(example, messages=({"role": "user", "content": f"say {i % 2}"},), answer=answer, images=images)

    def verify(self, example, completion):
        score = ord(completion[0]) % 11 / 10 if completion else 0.0
        return Verdict(2 * score - 1, score >= 0.5, completion[:1], "first byte", score=score)
