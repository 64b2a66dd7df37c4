"""MBPP-Pro, the paper's code task: MBPP+ (evalplus/mbppplus), checked tasks of MBPP with 35 times as many tests.

Example (task 2): the sentence and the test that the model sees are those of `mbpp_sanitized`; its answer is run on a
hundred inputs (`for i, (inp, exp) in enumerate(zip(inputs, results)): assertion(similar_elements(*inp), exp, 0)`).

The paper used MBPP+ v0.1.0, 399 tasks: 300 to train and validate with, 99 to test. Today's has 378. Ours: test is 99
tasks of MBPP's own test part, chosen by the hash of their number; of the others, one in seven validates. So an expert
trained on `mbpp` may be scored here; one trained here has seen tasks of the test split of `mbpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from transformer2.tasks._rows import Row, field_of, hash_of, load_rows
from transformer2.tasks.mbpp import SPLITS
from transformer2.tasks.mbpp_sanitized import SanitizedMBPP

__all__ = ["TASK", "MBPPPro"]

TEST_ROWS = 99


class MBPPPro(SanitizedMBPP):
    """Functions from a sentence and a test, tested harder."""

    name: ClassVar[str] = "mbpp_pro"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    hub_id: ClassVar[str] = "evalplus/mbppplus"
    pinned: ClassVar[str] = "b2d74c91837c3f2a20c1299ae98133cbe7cfa077"
    cpu_seconds: ClassVar[int] = 5
    config: ClassVar[str | None] = None
    hub_splits: ClassVar[tuple[str, ...]] = ("test",)

    def _rows(self, data_dir: str | None) -> list[Row]:
        return load_rows("mbpp_pro", "test", data_dir, self.hub_id, revision=self.revision)

    def _split(self, numbers: list[int]) -> Mapping[str, range | set[int]]:
        candidates = sorted((n for n in numbers if n in SPLITS["test"]), key=lambda n: hash_of(str(n)))
        test = set(candidates[: min(TEST_ROWS, len(numbers) // 4)])
        rest = set(numbers) - test
        validation = {n for n in rest if hash_of(str(n)) % 7 == 0}
        return {"train": rest - validation, "validation": validation, "test": test}

    def _tests(self, row: Row, shown: list[str], where: str) -> tuple[str, ...]:
        return (field_of(row, "test", where),)


TASK = MBPPPro
