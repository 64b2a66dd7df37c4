"""A task of the tests' own, named in configs by its class path: the answer must begin with an early letter."""

import math
import os
import time
from dataclasses import replace
from typing import ClassVar

from transformer2.tasks import Task
from transformer2.tasks.tiny import TinyReasoning
from transformer2.types import Example, Verdict


class FirstLetter(Task):
    """Right when the first byte of the completion is below the middle of the alphabet of bytes."""

    name: ClassVar[str] = "first_letter"
    description: ClassVar[str] = "begin with an early letter"
    max_new_tokens: ClassVar[int] = 4
    verify_in = "inline"

    def examples(self, split, data_dir=None):
        numbers = {"train": range(0, 64), "validation": range(64, 80), "test": range(80, 96)}[split]
        return [
            Example(f"first_letter/{split}/{i}", ({"role": "user", "content": f"say {i}"},), "early") for i in numbers
        ]

    def verify(self, example, completion):
        return Verdict.of(bool(completion) and ord(completion[0]) < ord("h"), completion[:1], "first letter")


class Apart(FirstLetter):
    """Judged in processes of its own, as tasks are by default."""

    verify_in = "workers"


class SameIds(FirstLetter):
    """Every row has the same id. Every second one is right, whatever is answered: no strategy gains anything."""

    name: ClassVar[str] = "same_ids"

    def examples(self, split, data_dir=None):
        return [replace(example, id="row") for example in super().examples(split, data_dir)]

    def verify(self, example, completion):
        return Verdict.of(int(example.question.split()[-1]) % 2 == 0, completion, "even")


class Spelt(FirstLetter):
    """Has solutions, of many lengths; row 5 of train has the longest."""

    name: ClassVar[str] = "spelt"
    max_new_tokens: ClassVar[int] = 24
    longest: ClassVar[int] = 20

    def solution(self, example):
        i = int(example.id.rpartition("/")[2])
        return "a" * (self.longest if i == 5 else 1 + i % 7) + "é"


class Splits(FirstLetter):
    """As many rows as asked for; a split that is not named does not exist."""

    name: ClassVar[str] = "splits"

    def __init__(self, train: int = 8, validation: int = 8, test: int = 8, splits=("train", "validation", "test")):
        self.sizes, self.splits = {"train": train, "validation": validation, "test": test}, tuple(splits)

    def examples(self, split, data_dir=None):
        if data_dir is not None:
            open(os.path.join(data_dir, f"{split}.txt")).close()
        rows = range(self.sizes[split])
        return [Example(f"splits/{split}/{i}", ({"role": "user", "content": f"{split} {i}"},), "early") for i in rows]


class Wanting(FirstLetter):
    """Has an option without a default."""

    def __init__(self, letters: str):
        self.letters = letters


class Never(FirstLetter):
    """No answer is right."""

    def verify(self, example, completion):
        return Verdict.of(False, None, "")


class Always(FirstLetter):
    """Every answer is right."""

    def verify(self, example, completion):
        return Verdict.of(True, completion, "fine")


class Undecided(FirstLetter):
    """Abstains on the first `share` of its rows, fails on the next `failing`."""

    share: ClassVar[float] = 1.0
    failing: ClassVar[int] = 0

    def verify(self, example, completion):
        row = int(example.id.rpartition("/")[2])
        rows = {"train": (0, 64), "validation": (64, 16), "test": (80, 16)}[example.id.split("/")[1]]
        left_out = self.share * rows[1]
        if row - rows[0] < left_out:
            return Verdict.abstain("no gold answer")
        if row - rows[0] < left_out + self.failing:
            _raise()
        return super().verify(example, completion)


class Ragged(Apart):
    """Prompts of very different lengths, and one row that its verifier fails on: ranks are dealt unequal work."""

    name: ClassVar[str] = "ragged"

    def examples(self, split, data_dir=None):
        rows = super().examples(split, data_dir)
        longer = [{"role": "user", "content": "say" + " so" * (7 * i % 40)} for i in range(len(rows))]
        return [Example(row.id, (message,), row.answer) for row, message in zip(rows, longer, strict=True)]

    def solution(self, example):
        return "a" * (1 + int(example.id.rpartition("/")[2]) % 3)

    def verify(self, example, completion):
        time.sleep(float(os.environ.get("RAGGED_SECONDS", 0)))
        if example.id.endswith("/train/7"):
            _raise()
        return super().verify(example, completion)


def _raise():
    raise RuntimeError("no answer key")


class Broken(Apart):
    """Its verifier fails on the first rows. How and on how many is fixed when it is made: workers get the instance."""

    broken: ClassVar[int] = 0
    fault: ClassVar[str] = "raises"
    verify_seconds: ClassVar[float] = 0.3
    faults: ClassVar = {
        "raises": _raise,
        "hangs": lambda: time.sleep(600),
        "is stuck in C": lambda: 9**9**9,
        "dies": lambda: os._exit(3),
        "returns None": lambda: None,
        "returns a bool": lambda: True,
        "returns NaN": lambda: Verdict(math.nan, False, None, ""),
        "returns infinity": lambda: Verdict(math.inf, True, None, ""),
        "returns a score beyond 1": lambda: Verdict(1.0, True, None, "", score=30.0),
        "returns a score of NaN": lambda: Verdict(1.0, True, None, "", score=math.nan),
        "returns no number": lambda: Verdict("1", True, None, ""),
    }

    def __init__(self):
        self.rows, self.fault = self.broken, self.fault

    def verify(self, example, completion):
        if int(example.id.rpartition("/")[2]) < self.rows:
            return self.faults[self.fault]()
        return super().verify(example, completion)


class Unstartable(Apart):
    """Its workers die before they are ready."""

    def __setstate__(self, state):
        os._exit(9)

    def __getstate__(self):
        return {"a": 1}


class MostlyB(TinyReasoning):
    """B is right in three questions of five, whatever they ask, and nothing is in the others: always B is the best."""

    name: ClassVar[str] = "mostly_b"

    def verify(self, example, completion):
        says_b = " B" in completion
        return Verdict.of(says_b and int(example.id.rpartition("/")[2]) % 5 < 3, completion[-3:], "B or nothing")
