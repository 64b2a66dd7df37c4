"""Questions and answers of your own: one file, a row a line (.jsonl; .jsonl.gz, .parquet and .arrow too).

Examples, one of each kind of answer (`verifier`):

    exact    {"question": "Which department answers for parking?", "answer": "Facilities"}
    numeric  {"question": "How many days of leave does a new colleague have?", "answer": 26}
    choice   {"question": "Who signs a travel request?", "choices": ["The team lead", "Payroll"], "answer": "A"}
    code     {"question": "Write a function net(price) that takes off 19 % tax.", "tests": ["assert net(119) == 100"],
              "answer": "def net(price):\n    return price / 1.19"}

What is right, `_answers` says. Every row is in one split, by the hash of its question: 14 of 20 to train on, 3 for
validation, 3 to test. So rows that are added move no other, and questions that differ in case and blanks alone are on
the same side. A row may have a `system` message of its own, and an `image`, the path of a picture relative to the file
(in a table, or its bytes); rows with pictures are told apart, and divided, by picture: none is trained on and scored.

`keys: {solution: ITS_NAME}` names a field with worked solutions, for `model.objective: next_token`; without it the
answer alone, in the form that the verifier reads, is the solution.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar

from tqdm import tqdm

from transformer2.errors import ConfigError, DataError, nearest, shown
from transformer2.pictures import Picture, PictureInTable, check_names
from transformer2.sandbox import Program
from transformer2.tasks._answers import KINDS
from transformer2.tasks._code import program_of
from transformer2.tasks._rows import Row, examples_of, field_of, hash_of, read_rows
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers import stop_if_unverified, verify_all

__all__ = ["JSONL"]

FIELDS = ("question", "answer", "system", "choices", "tests", "image", "solution")
MIN_ROWS = 40  # with fewer, a test split of three in twenty says nothing
SHARES = {"train": range(14), "validation": range(14, 17), "test": range(17, 20)}


class JSONL(Task):
    """The rows of a file, verified by one of the package's verifiers.

    Inline for `exact` and `numeric`: both read in linear time.

    Args:
        path: The file.
        verifier: `exact`, `numeric`, `choice` or `code`.
        keys: The file's own names of fields, e.g. `{question: prompt, answer: label}`; `solution` is read where named.
        system: System message; `auto` takes one that asks for the form that the verifier reads, None sends none.
        prompt: Template of the user message, with `{question}`, and what the verifier shows besides: `{options}` of
            choice, `{test}` of code; None takes the verifier's.
        allow_unsafe_code_execution: Of code: run answers even where this system cannot isolate them. They could then
            read and change whatever you can.
    """

    name: ClassVar[str] = "jsonl"
    description: ClassVar[str] = "questions and answers from a file"

    def __init__(
        self,
        path: str,
        verifier: str = "exact",
        keys: Mapping[str, str] | None = None,
        system: str | None = "auto",
        prompt: str | None = None,
        allow_unsafe_code_execution: bool = False,
    ) -> None:
        if not isinstance(path, str) or not path.strip():
            raise ConfigError(f"task 'jsonl': path {path!r:.60} names no file; give one with a JSON object a line")
        if not isinstance(verifier, str) or verifier not in KINDS:
            near = nearest(str(verifier)[:60], KINDS)
            raise ConfigError(f"task 'jsonl': unknown verifier {verifier!r:.60}{near} Known: {', '.join(KINDS)}")
        if not isinstance(keys, Mapping | None) or not all(isinstance(k, str) for k in (keys or {}).values()):
            raise ConfigError(f"task 'jsonl': keys {keys!r:.60} must map fields to the file's names of them")
        for field in keys or {}:
            if field not in FIELDS:
                raise ConfigError(
                    f"task 'jsonl': keys has the unknown field {field!r:.60}{nearest(str(field), FIELDS)}"
                )
        self.path, self.kind = path, KINDS[verifier]
        self.named = dict(keys or {})
        self.keys = {field: field for field in FIELDS if field != "solution"} | self.named
        self.verify_in = self.kind.verify_in
        self.allow_unsafe_code_execution = allow_unsafe_code_execution
        self.proved = False  # whether the rows' own programs were run
        system = self.kind.system if system == "auto" else system
        self.wording = Wording(self.name, system, self.kind.prompt if prompt is None else prompt, self.kind.shown)

    def check_rows(self) -> None:
        """Refuse a file with a row that cannot be used, or with too few."""
        self._read()

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in the order of the file; `data_dir` is not used."""
        self.check_split(split)
        return self._read(run=True)[split]

    def program(self, example: Example, completion: str) -> Program | None:
        """Of code: the program in a completion, with the tests that it has to pass."""
        return program_of(example, completion)

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the completion is right, as the verifier sees it."""
        if self.verify_in == "sandbox":
            (verdict,) = verify_all(self, [example], [completion])
            return verdict
        return self.kind.verify(example, completion)

    def solution(self, example: Example) -> str:
        """The field that `keys` names, else the answer in the form that is asked for."""
        return str(example.fields.get("solution") or self.kind.solution(example))

    def _run_solutions(self, asked: Sequence[tuple[Example, Row]]) -> None:
        """Refuse a row whose own program fails its tests, and another solution that it has."""
        programs: dict[Any, tuple[str, str, Example, Row]] = {}
        for example, row in asked:
            for what, text in (("answer", self.kind.solution(example)), ("solution", self.solution(example))):
                programs.setdefault((text, example.fields["tests"]), (what, text, example, row))
        todo, size = [*programs.values()], 256  # at a time, to be seen to go on
        for start in tqdm(range(0, len(todo), size), "run the rows' own programs", disable=len(todo) <= 4 * size):
            _, texts, examples, _ = zip(*todo[start : start + size], strict=True)
            verdicts = verify_all(self, examples, texts)
            for verdict, (what, _, example, row) in zip(verdicts, todo[start:], strict=False):
                if not verdict.correct and not verdict.is_failure:
                    why = f"its own {what} fails its tests ({shown(verdict.reason, 120)}); correct or drop it"
                    raise DataError(f"{example.id}: {why} ({row.source})")
            stop_if_unverified(verdicts)
        self.proved = True

    def _read(self, run: bool = False) -> dict[str, list[Example]]:
        """The examples of every split. A bad row is refused whichever split it is in.

        Args:
            run: Also run the programs of the rows, the first time.
        """
        rows = read_rows(self.path, pictures=self.keys["image"])
        unread = self._unread(rows)
        splits: dict[str, list[Example]] = {split: [] for split in SHARES}
        asked: dict[Any, tuple[Example, Row]] = {}
        again: list[tuple[Row, Row]] = []

        def example(i: int, row: Row) -> Example:
            made, side, picture = self._example(row, f"jsonl/{i}")
            key = (*(_same(str(m["content"])) for m in made.messages), picture, made.fields.get("tests"))
            other, before = asked.setdefault(key, (made, row))
            if self.verify_in != "sandbox" and not self.kind.verify(other, made.answer).correct:
                what = "its own answer is judged wrong"
                if other is not made:
                    what = f"another answer to the same question stands at {before.source}"
                raise DataError(f"{made.id}: {what}; correct or drop one")
            if self.verify_in != "sandbox" and not (verdict := self.kind.verify(made, self.solution(made))).correct:
                raise DataError(f"{made.id}: its solution is judged wrong ({verdict.reason}); correct or drop it")
            if other is made:
                splits[side].append(made)
            else:  # counted again, it would be evidence that there is not
                again.append((before, row))
            return made

        examples_of(rows, example)
        sizes = ", ".join(f"{len(examples)} {split}" for split, examples in splits.items())
        questions = len(asked)
        if questions < MIN_ROWS or not all(splits.values()):
            raise DataError(
                f"{shown(self.path)} has {questions} different questions ({sizes} by the hash of the question); "
                f"give at least {MIN_ROWS}, with some in every split"
            )
        if run and self.verify_in == "sandbox" and not self.proved:
            self._run_solutions([*asked.values()])
        if again:
            first, row = again[0]
            _warn_once(
                f"{shown(self.path)}: {len(again)} rows ask what an earlier row asks and are left out "
                f"(first: {row.source.rpartition(', ')[2]}, as {first.source.rpartition(', ')[2]})"
            )
        if unread:
            named = ", ".join(repr(name)[:40] for name in unread[:8]) + (", ..." if unread[8:] else "")
            _warn_once(
                f"{shown(self.path)}: nothing is read of {named}; put what a question needs of it into the question"
            )
        return splits

    def _unread(self, rows: Sequence[Row]) -> list[str]:
        """Columns that nothing is read of.

        Raises:
            DataError: No row has a column that `keys` names.
        """
        columns = {name: None for row in rows for name, value in row.items() if value is not None}
        for field, name in self.named.items():
            if name not in columns:
                has = ", ".join(repr(column)[:40] for column in list(columns)[:8]) or "no fields"
                raise DataError(f"{shown(self.path)}: keys say {{{field}: {name}}}, and no row has it; there is {has}")
        return [name for name in columns if name not in self.keys.values()]

    def _example(self, row: Row, where: str) -> tuple[Example, str, str]:
        """The example of a row, its split, and the digest of its picture."""
        field = partial(self._field, row, where)
        question = field("question").strip()
        for name in ("choices", "tests"):
            if row.get(self.keys[name]) is not None and name not in self.kind.needs:
                wanted = next(verifier for verifier, kind in KINDS.items() if name in kind.needs)
                raise DataError(f"{where}: the row has {self.keys[name]!r}; set verifier: {wanted}, or drop the field")
        shows = row.get(self.keys["image"])
        shows = None if isinstance(shows, PictureInTable) and shows.cell() is None else shows
        check_names(
            {name: value for name, value in row.items() if name not in self.keys.values()} | {"image": shows},
            "name it 'image', the path of one picture, or say keys: {image: ITS_NAME}",
        )
        asked = self.kind.read(field, where)
        messages = self.wording.messages(question=question, **asked.shown)
        if row.get(self.keys["system"]) is not None:
            messages = ({"role": "system", "content": field("system").strip()}, messages[-1])
        images = () if shows is None else (field("image", Picture),)
        picture = images[0].digest() if images else ""
        place = hash_of(picture or _same(question)) % 20
        side = next(split for split, places in SHARES.items() if place in places)
        name, fields = f"jsonl/{side}/{where.rpartition('/')[2]}", asked.fields
        if "solution" in self.keys:
            fields = {**fields, "solution": field("solution").strip()}
        return Example(name, messages, asked.answer, fields, images), side, picture

    def _field(self, row: Row, where: str, name: str, kind: type | tuple[type, ...] = str) -> Any:
        """A field of a row under the file's own name."""
        key = self.keys[name]
        if key not in row:
            has = ", ".join(repr(k)[:40] for k in list(row)[:8]) or "no fields"
            said = f"add it, or say keys: {{{name}: ITS_NAME}}"
            raise DataError(f"{where}: field {key!r} is missing, there is {has}; {said}")
        return field_of(row, key, where, kind)


@cache  # a run opens the file for each of its splits
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _same(question: str) -> str:
    """What questions on one side have in common; another reading of it would move rows from split to split."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())
