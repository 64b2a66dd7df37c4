"""TextVQA and OK-VQA: questions about a picture that several people answered.

A row of the Hub: `question`, `image`, `image_id`, and `answers`, texts (or, as HuggingFaceM4 has them, mappings with an
`answer` and a `raw_answer`, of which the second is what was said, not its stem). In a folder of files, a line of JSON
whose `image` is a path, relative to the file:

    {"question": "what does the sign say?", "image": "images/17.jpg", "image_id": "17", "answers": ["stop", ...]}

The model sees the picture, the question and "Answer the question using a single word or phrase."; its whole completion
is scored (verifiers/vqa.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from transformer2.arguments import check_arguments
from transformer2.errors import DataError
from transformer2.pictures import Picture, PictureFile
from transformer2.tasks._rows import Row, examples_of, field_of, in_split, load_rows
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers.vqa import ENOUGH, normalised, verify_vqa

__all__ = ["OKVQA", "TextVQA", "VQATask"]

PROMPT = "{question}\nAnswer the question using a single word or phrase."
VALIDATION_SHARE = 20  # one picture in so many


class VQATask(Task):
    """Questions about pictures, each answered by several people.

    Under `clean`, validation is every twentieth picture of train, by the hash of its id, so that no picture is in both.
    Under `paper`, train is whole and validation is the split that is scored, as published numbers have it.

    Inline: normalising takes time in proportion to the text.

    Args:
        protocol: `clean` or `paper`.
        reward: `paper`: +1 for a score of one half or more, else -0.1; `soft`: from -0.1 for 0 to 1 for 1.
        revision: Commit of the Hub data set that is scored, which OKVQA's train rows are not of; None takes the newest.
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`; the picture stands before it.
    """

    max_new_tokens: ClassVar[int] = 16
    pictures: ClassVar[int] = 1
    verify_in = "inline"
    sources: ClassVar[Mapping[str, tuple[str, str]]]  # train and test -> Hub data set, split

    def __init__(
        self,
        protocol: Literal["clean", "paper"] = "clean",
        reward: Literal["paper", "soft"] = "paper",
        revision: str | None = None,
        system: str | None = None,
        prompt: str = PROMPT,
    ) -> None:
        self.wording = Wording(self.name, system, prompt, ("question",))
        chosen = {"protocol": protocol, "reward": reward, "revision": revision}
        check_arguments("data.task_options", VQATask.__init__, chosen)
        self.protocol, self.reward, self.revision = protocol, reward, revision

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in the order of the source."""
        self.check_split(split)
        scored = split == "test" or (split == "validation" and self.protocol == "paper")
        hub_id, source = self.sources["test" if scored else "train"]
        revision = self.revision if hub_id == self.sources["test"][0] else None
        rows = load_rows(self.name, source, data_dir, hub_id, revision=revision, pictures="image")
        whole = scored or self.protocol == "paper"

        def example(i: int, row: Row) -> Example | None:
            where = f"{self.name}/{source}/{i}"
            picture = field_of(row, "image", where, Picture)
            if not whole and not in_split(split, _picture_id(row, picture, where), VALIDATION_SHARE):
                return None
            question, answers = field_of(row, "question", where).strip(), _answers(row, where)
            (often, _), *_ = Counter(said for a in answers if (said := normalised(a))).most_common(1) or [("", 0)]
            gold = next((a for a in answers if normalised(a) == often), answers[0])
            fields = MappingProxyType({"answers": answers})
            messages = self.wording.messages(question=question)
            return Example(f"{self.name}/{split}/{i}", messages, gold, fields, (picture,))

        return examples_of(rows, example)

    def verify(self, example: Example, completion: str) -> Verdict:
        """Right where two of ten people say the same; the score is the VQA accuracy."""
        said = example.fields.get("answers") or [example.answer] * (ENOUGH + 1)  # a user's own row: all agree
        return verify_vqa(completion, said, self.reward == "soft")

    def solution(self, example: Example) -> str:
        """What most people said; where fewer than two agree, `verify` does not find it right."""
        return example.answer


class TextVQA(VQATask):
    """Answered by reading what is written in a picture; the paper's vision expert. One row:

        question: what is the brand of this camera?      image_id: 003a8ae2ef43b901      image: {bytes, path}
        answers:  ["nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota", "dakota", ...], ten

    34,602 / 5,000 / 5,734 questions, from lmms-lab-encoder/textvqa (lmms-lab/textvqa before it moved). The answers of
    the test split are empty, so `test` is the Hub's validation split, and `validation` is taken out of train.
    """

    name: ClassVar[str] = "textvqa"
    description: ClassVar[str] = "questions about a picture, answered by what is written in it"
    sources: ClassVar = {
        "train": ("lmms-lab-encoder/textvqa", "train"),
        "test": ("lmms-lab-encoder/textvqa", "validation"),
    }


class OKVQA(VQATask):
    """Questions that also take knowledge of the world; the paper's unseen vision task. One row:

        question: What sport can you use this for?      image: {bytes, path}
        answers:  ["race", "race", "race", "race", "race", "race", "motocross", "motocross", "ride", "ride"]

    `test` is val2014, 5,046 questions, from lmms-lab-encoder/OK-VQA (lmms-lab/OK-VQA before it moved), which has no
    other split. `train`, 9,009 questions, is HuggingFaceM4/OK-VQA's, a data set with a loading script, which `datasets`
    runs no more: give a copy (`okvqa/train.parquet` or `.jsonl` under data_dir), or take the shots from test:
    data.protocol paper.
    """

    name: ClassVar[str] = "okvqa"
    description: ClassVar[str] = "questions about a picture that take knowledge of the world"
    sources: ClassVar = {"train": ("HuggingFaceM4/OK-VQA", "train"), "test": ("lmms-lab-encoder/OK-VQA", "val2014")}


def _picture_id(row: Row, picture: Picture, where: str) -> str:
    """What tells the pictures of a data set apart, wherever it lies."""
    if "image_id" not in row and isinstance(picture, PictureFile):
        return Path(picture.path).name
    return str(field_of(row, "image_id", where, (str, int)))


def _answers(row: Row, where: str) -> tuple[str, ...]:
    """What people said, one each."""
    found = field_of(row, "answers", where, (list, tuple))
    said = [a.get("raw_answer", a.get("answer")) if isinstance(a, Mapping) else a for a in found]
    if not all(isinstance(text, str) for text in said):
        raise DataError(f"{where}: field 'answers' holds one that is no text; correct or drop the row")
    if 0 < len(said) <= ENOUGH:
        raise DataError(
            f"{where}: {len(said)} annotators are too few for the VQA accuracy, by which {ENOUGH} others must agree; "
            "ask the question as a row of the task jsonl (exact)"
        )
    if not any(text.strip() for text in said):
        raise DataError(f"{where}: field 'answers' holds no answer, so nothing can be scored; drop the row")
    return tuple(text.strip() for text in said)
