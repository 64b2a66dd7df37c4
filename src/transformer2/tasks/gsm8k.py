"""GSM8K: grade-school word problems whose answer is one number (openai/gsm8k, config main).

One row:

    question: A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?
    answer:   It takes 2/2=<<2/2=1>>1 bolt of white fiber
              So the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric
              #### 3

The model sees the question and is asked to end on a line `#### N`. Right means: its last final answer equals 3.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.tasks._rows import Row, examples_of, field_of, in_split, load_rows
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers.numeric import parse_number, verify_number

__all__ = ["GSM8K", "SYSTEM"]

REVISION = "740312add88f781978c0658806c59bc2815b9866"
SYSTEM = (
    "Solve the problem step by step. Then write the final answer on a last line of its own, in the form\n"
    "#### N\nwhere N is a single number."
)
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class GSM8K(Task):
    """Grade-school mathematics.

    The Hub has no validation split. Ours is every train question whose sha256 is 0 modulo 15 (538 of 7473): it does not
    depend on the order of rows, and equal questions fall on the same side. `train` is the rest; `test` is the Hub's.

    Inline: the numeric verifier reads in linear time, 0.05 s for 40,000 characters (tests/verifiers/test_numeric.py).

    Args:
        revision: Commit of the Hub data set; None takes the newest.
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`.
    """

    name: ClassVar[str] = "gsm8k"
    description: ClassVar[str] = "grade-school mathematics: word problems answered with a number"
    max_new_tokens: ClassVar[int] = 512
    verify_in = "inline"

    def __init__(
        self, revision: str | None = REVISION, system: str | None = SYSTEM, prompt: str = "{question}"
    ) -> None:
        self.revision = revision
        self.wording = Wording(self.name, system, prompt, ("question",))

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in the order of the source."""
        self.check_split(split)
        source = "test" if split == "test" else "train"
        rows = load_rows("gsm8k", source, data_dir, "openai/gsm8k", config="main", revision=self.revision)

        def example(i: int, row: Row) -> Example | None:
            where = f"gsm8k/{source}/{i}"
            question = field_of(row, "question", where).strip()
            if not in_split(split, question, 15):
                return None
            solution = field_of(row, "answer", where)
            fields = MappingProxyType({"solution": _CALCULATOR.sub("", solution).strip()})
            messages = self.wording.messages(question=question)
            return Example(f"gsm8k/{split}/{i}", messages, _gold(solution, where), fields)

        return examples_of(rows, example)

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the last final answer of the completion equals the gold number."""
        return verify_number(example.answer, completion)

    def solution(self, example: Example) -> str | None:
        """The row's rationale, which ends on `#### N`, without its calls of a calculator (`<<2/2=1>>`).

        Of a row without one it is that line.
        """
        return example.fields.get("solution") or f"#### {example.answer}"


def _gold(answer: str, where: str) -> str:
    """The number behind `####`, without thousands commas."""
    _, marker, gold = answer.rpartition("####")
    if not marker or parse_number(gold) is None:
        raise DataError(f"{where}: field 'answer' does not end on '#### <number>'; correct or drop the row")
    return gold.strip() if "." in gold.partition(",")[0] else gold.strip().replace(",", "")  # 1.234,5 keeps its comma
