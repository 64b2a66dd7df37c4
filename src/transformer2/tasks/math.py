r"""MATH: competition problems whose answer is one mathematical expression (Hendrycks et al. 2021).

Rows come from DigitalLearningGmbH/MATH-lighteval; EleutherAI/hendrycks_math has the same ones by subject. One row:

    problem:  How many vertical asymptotes does the graph of $y=\frac{2}{x^2+x-6}$ have?
    level:    Level 3
    type:     Algebra
    solution: The denominator of the rational function factors into $x^2+x-6=(x-2)(x+3)$.  Since the numerator is always
              nonzero, [...] Therefore, the graph has $\boxed{2}$ vertical asymptotes.

The gold answer is the last box of the solution, as everywhere in the literature; but where the problem wants "all
solutions, separated by commas" and the solution boxes them one by one (8 test rows), it is all of them. The model is
asked for `\boxed{...}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from transformer2.errors import DataError
from transformer2.tasks._rows import Row, examples_of, field_of, in_split, load_rows
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers.boxes import boxes
from transformer2.verifiers.math import start_workers, verify_math, verify_math_many

__all__ = ["MATH"]

HUB = "DigitalLearningGmbH/MATH-lighteval"
BY_SUBJECT = "EleutherAI/hendrycks_math"
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
# What public code pins these data sets to.
REVISIONS = {
    HUB: "0530c78699ea5e8eb5530600900e1f328b48acad",
    BY_SUBJECT: "21a5633873b6a120296cce3e2df9d5550074f4a3",
}

_SYSTEM = (
    "Solve the problem step by step. Then give the final answer once, in simplest form, inside \\boxed{}. "
    "If the problem asks for several values, put all of them into one box, separated by commas."
)


class MATH(Task):
    """Competition mathematics.

    The Hub has 7500 train and 5000 test rows and no validation split. Ours is every train problem whose sha256 is 0
    modulo 15; `train` is the rest. Protocols (paper, section 4): `clean` takes few-shot rows from train, `paper` from
    test. With a folder that holds the test rows alone, use the `paper` protocol.

    Args:
        hub: Hub data set: `DigitalLearningGmbH/MATH-lighteval`, or `EleutherAI/hendrycks_math` with one
            configuration per subject.
        revision: Commit of the Hub data set; None takes the pinned one of the two above, of another set the newest.
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`.
    """

    name: ClassVar[str] = "math"
    description: ClassVar[str] = "competition mathematics: problems answered with a mathematical expression"
    max_new_tokens: ClassVar[int] = 1024

    def __init__(
        self,
        hub: str = HUB,
        revision: str | None = None,
        system: str | None = _SYSTEM,
        prompt: str = "{question}",
    ) -> None:
        self.hub, self.revision = hub, revision or REVISIONS.get(hub)
        self.wording = Wording(self.name, system, prompt, ("question",))

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All problems of a split, in the order of the source."""
        self.check_split(split)
        source = "test" if split == "test" else "train"

        def example(i: int, row: Row) -> Example | None:
            where = f"math/{source}/{i}"
            problem = field_of(row, "problem", where).strip()
            if not in_split(split, problem, 15):
                return None
            solution = field_of(row, "solution", where)
            gold = _gold(problem, solution, where)
            fields = {key: field_of(row, key, where) for key in ("level", "type")} | {"solution": solution.strip()}
            return Example(f"math/{split}/{i}", self.wording.messages(question=problem), gold, fields)

        return examples_of(self._rows(source, data_dir), example)

    def _rows(self, source: str, data_dir: str | None) -> list[Row]:
        if data_dir is not None or self.hub != BY_SUBJECT:
            return load_rows("math", source, data_dir, self.hub, revision=self.revision)
        by_subject = (load_rows("math", source, None, self.hub, subject, self.revision) for subject in SUBJECTS)
        return [row for rows in by_subject for row in rows]

    def warm_up(self) -> None:
        """Start the processes that compare answers: each imports mpmath."""
        start_workers()

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the one final answer of the completion equals the gold one, however it is written."""
        return verify_math(example.answer, completion)

    def solution(self, example: Example) -> str | None:
        """The row's solution; where it boxes several answers, or there is none, the whole one follows in a last box."""
        text: str = example.fields.get("solution", "")
        return text if {*boxes(text)} == {example.answer} else f"{text}\n\\boxed{{{example.answer}}}".lstrip("\n")

    def verify_many(
        self, examples: Sequence[Example], completions: Sequence[str], deadline: float | None = None
    ) -> list[Verdict]:
        """The same for many completions side by side; what takes over two seconds to compare is wrong."""
        return verify_math_many([example.answer for example in examples], completions, deadline)


def _gold(problem: str, solution: str, where: str) -> str:
    found = boxes(solution)
    if not found or not found[-1]:
        raise DataError(f"{where}: field 'solution' has no \\boxed{{answer}}; correct or drop the row")
    if not re.search(r"separated\s+by\s+comma", problem):
        return found[-1]
    # One box an answer, or one for all: `70,110` is two answers there, not a number of thousands.
    return re.sub(r",(?=\d)", ", ", ", ".join(dict.fromkeys(found)))
