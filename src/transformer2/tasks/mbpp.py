"""MBPP: short functions described in a sentence; all of them, those its authors checked, and those of MBPP+.

One row:

    task_id:   2
    text:      Write a function to find the shared elements from the given two lists.
    code:      def similar_elements(test_tup1, test_tup2):
                 res = tuple(set(test_tup1) & set(test_tup2))
                 return (res)
    test_list: ["assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))", ...]

The model sees the sentence and the first test, which names the function; right means that all tests hold, run in the
sandbox. (The data set's own prompt shows all tests: under a reward, an invitation to return the expected values.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.tasks._code import CodeTask, fields_of, used_names
from transformer2.tasks._rows import Row, examples_of, field_of, hash_of, load_rows
from transformer2.types import Example

__all__ = ["MBPP", "MBPPPro", "SanitizedMBPP"]

# The data set's own splits, by task number (1 to 10 are meant for few-shot prompts).
SPLITS = {"few_shot": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
PRO_TEST_ROWS = 99
_SLOW = {123: 10}  # CPU seconds where the reference solution itself needs more than two


class MBPP(CodeTask):
    """974 functions (google-research-datasets/mbpp, config full). Example: the row above."""

    name: ClassVar[str] = "mbpp"
    description: ClassVar[str] = "programming: a Python function described in a sentence"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test", "few_shot")
    max_new_tokens: ClassVar[int] = 512
    hub_id: ClassVar[str] = "google-research-datasets/mbpp"
    pinned: ClassVar[str] = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
    config: ClassVar[str] = "full"
    wording_fields: ClassVar[tuple[str, ...]] = ("question", "test")
    user: ClassVar[str] = (
        "{question}\nYour code should pass this test, and others like it:\n\n```python\n{test}\n```\n\n"
        "Answer with Python code in one Markdown code block."
    )

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All functions of a split, in the order of the source."""
        self.check_split(split)
        rows = self._rows(data_dir)
        numbers: list[int] = []
        examples_of(rows, lambda i, row: numbers.append(_number(row, f"{self.name}/{i}")))
        chosen = self._split(numbers)[split]
        return examples_of(rows, lambda i, row: self._example(row, numbers[i], split) if numbers[i] in chosen else None)

    def _rows(self, data_dir: str | None) -> list[Row]:
        """All rows: one local file (`mbpp/full.jsonl`), or the Hub's splits together (`mbpp/full/train.jsonl`, ...)."""
        root = Path(os.path.expanduser(data_dir or ""))
        parted = any(next(folder.glob(f"{self.config}/train[-.]*"), None) for folder in (root / "mbpp", root))
        if data_dir is not None and not parted:
            return load_rows("mbpp", self.config, data_dir, self.hub_id)
        return [
            row
            for split in ("prompt", "test", "validation", "train")
            for row in load_rows("mbpp", split, data_dir, self.hub_id, self.config, self.revision)
        ]

    def _split(self, numbers: list[int]) -> Mapping[str, range | set[int]]:
        return SPLITS

    def _example(self, row: Row, number: int, split: str) -> Example:
        where = f"{self.name}/{split}/{number}"
        text = field_of(row, "prompt" if "prompt" in row else "text", where)  # sanitized and MBPP+ say prompt
        code = field_of(row, "code", where)
        shown = field_of(row, "test_list", where, list)
        if not shown:
            raise DataError(f"{where}: field 'test_list' is empty; correct or drop the row")
        imports = row.get("test_imports") or []
        if not all(isinstance(line, str) for line in (*shown, *imports)):
            raise DataError(f"{where}: 'test_list' or 'test_imports' holds what is not text; correct or drop the row")
        tests = self._tests(row, shown, where)
        messages = self.wording.messages(question=text.strip(), test=shown[0].strip())
        setup = "\n".join(["import math, sys", *imports])
        seconds = _SLOW.get(number, self.cpu_seconds)
        fields = fields_of(tests, used_names(tests, code, where), setup, cpu_seconds=seconds)
        return Example(where, messages, code, fields)

    def _tests(self, row: Row, shown: list[str], where: str) -> tuple[str, ...]:
        """What the tests build of the answer's own classes comes first, in their namespace."""
        before = str(row.get("test_setup_code") or "")
        return tuple(t for t in (before.replace("\r\n", "\n"), *shown) if t.strip())


class SanitizedMBPP(MBPP):
    """427 tasks of MBPP, checked by its authors (config sanitized).

    Example (task 2): "Write a function to find the shared elements from the given two lists.", tested by
    `assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))` and two more.
    """

    name: ClassVar[str] = "mbpp_sanitized"
    config: ClassVar[str] = "sanitized"

    @property
    def folders(self) -> tuple[str, ...]:
        """That of `mbpp`, in another file."""
        return ("mbpp",)


class MBPPPro(MBPP):
    """The paper's code task: MBPP+ (evalplus/mbppplus), checked tasks of MBPP with 35 times as many tests.

    Example (task 2): the sentence and the test that the model sees are those of `mbpp_sanitized`; its answer is run on
    100 inputs (`for i, (inp, exp) in enumerate(zip(inputs, results)): assertion(similar_elements(*inp), exp, 0)`).

    The paper used MBPP+ v0.1.0, 399 tasks: 300 to train and validate with, 99 to test. Today's has 378. Ours: test is
    99 tasks of MBPP's own test part, chosen by the hash of their number; of the others, one in seven validates. So an
    expert trained on `mbpp` may be scored here; one trained here has seen tasks of the test split of `mbpp`.
    """

    name: ClassVar[str] = "mbpp_pro"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    hub_id: ClassVar[str] = "evalplus/mbppplus"
    pinned: ClassVar[str] = "b2d74c91837c3f2a20c1299ae98133cbe7cfa077"
    cpu_seconds: ClassVar[int] = 5

    def _rows(self, data_dir: str | None) -> list[Row]:
        return load_rows("mbpp_pro", "test", data_dir, self.hub_id, revision=self.revision)

    def _split(self, numbers: list[int]) -> Mapping[str, range | set[int]]:
        candidates = sorted((n for n in numbers if n in SPLITS["test"]), key=lambda n: hash_of(str(n)))
        test = set(candidates[: min(PRO_TEST_ROWS, len(numbers) // 4)])
        rest = set(numbers) - test
        validation = {n for n in rest if hash_of(str(n)) % 7 == 0}
        return {"train": rest - validation, "validation": validation, "test": test}

    def _tests(self, row: Row, shown: list[str], where: str) -> tuple[str, ...]:
        return (field_of(row, "test", where),)


def _number(row: Row, where: str) -> int:
    value = field_of(row, "task_id", where, (int, str))
    digits = str(value).rpartition("/")[2]  # MBPP+ says "Mbpp/2"
    if not digits.isdigit():
        raise DataError(f"{where}: field 'task_id' is {value!r:.60}, which holds no number; correct or drop the row")
    return int(digits)
