"""The kinds of answers that rows of a user's file can have: what a row holds, what is asked, and what is right.

    exact    text       the whole answer is the row's, but for case, blanks, quotes and emphasis, and a full stop
    numeric  a number   the last final number of the answer equals it (`verifiers.numeric`)
    choice   an option  the one option that the answer ends on is it (`verifiers.choice`)
    code     a program  the program in the answer passes the row's tests, in the sandbox

Nothing but the whole answer counts for `exact`: one that names several is wrong, whichever is right.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from transformer2.errors import DataError
from transformer2.tasks import _code, arc
from transformer2.tasks.gsm8k import SYSTEM as NUMBER_LAST
from transformer2.tasks.mbpp import MBPP
from transformer2.types import Example, Verdict
from transformer2.verifiers.base import Where
from transformer2.verifiers.choice import verify_choice
from transformer2.verifiers.final import readable
from transformer2.verifiers.numeric import parse_number, verify_number

__all__ = ["KINDS", "Asked", "Kind"]

Read = Callable[..., Any]  # (name, kind) -> that field of a row, refused where it is of another type


class Asked(NamedTuple):
    """What a row comes to.

    Attributes:
        answer: Gold answer, as `Kind.verify` reads it.
        shown: Fields of the template besides `{question}`.
        fields: What the verifier needs besides the answer.
    """

    answer: str
    shown: Mapping[str, str] = MappingProxyType({})
    fields: Mapping[str, Any] = MappingProxyType({})


class Kind:
    """One kind of answer.

    Attributes:
        verify_in: See `Verifier`.
        needs: Fields of a row besides question and answer.
        system: System message, where no option says otherwise.
        prompt: Template of the user message, where no option says otherwise.
        shown: Fields of that template.
    """

    verify_in: ClassVar[Where] = "inline"
    needs: ClassVar[tuple[str, ...]] = ()
    system: ClassVar[str]
    prompt: ClassVar[str] = "{question}"
    shown: ClassVar[tuple[str, ...]] = ("question",)

    def read(self, field: Read, where: str) -> Asked:
        """What a row asks.

        Raises:
            DataError: It cannot be used.
        """
        raise NotImplementedError

    def solution(self, example: Example) -> str:
        """The answer in the form that is asked for."""
        return example.answer

    def verify(self, example: Example, completion: str) -> Verdict:
        """The verdict on a completion, where none has to be run."""
        raise NotImplementedError


def _bare(text: str) -> str:
    """An answer without what does not count."""
    spelt = "".join(_as_usual(c) for c in readable(text))
    plain = unicodedata.normalize("NFC", " ".join(spelt.casefold().split()))
    return _unquoted(_unquoted(plain).rstrip(". "))


def _as_usual(c: str) -> str:
    """A half-width letter as a whole one, a ligature as its letters; but 10² is not 102, and ① not 1."""
    spelt_alike = unicodedata.decomposition(c).startswith(("<narrow>", "<wide>", "<compat>"))
    return unicodedata.normalize("NFKC", c) if spelt_alike else c


def _unquoted(text: str) -> str:
    """A text without the quotes and emphasis around it: those of one side are its own, as in A* and 5'."""
    text, n = text.strip(), 0
    while 2 * n + 1 < len(text) and text[n] == text[-1 - n] and text[n] in "*`\"' ":
        n += 1
    return text[n : len(text) - n].strip()


class Exact(Kind):
    """Text."""

    system = "Answer with the final answer alone, without an explanation."

    def read(self, field: Read, where: str) -> Asked:
        """The answer is the row's text."""
        if isinstance(value := field("answer", object), int | float) and not isinstance(value, bool):
            raise DataError(f"{where}: the answer {value} is a number; put it in quotes, or set verifier: numeric")
        answer = field("answer", str).strip()
        if not _bare(answer):
            raise DataError(f"{where}: the answer {answer!r:.60} holds no word; correct or drop the row")
        return Asked(answer)

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the completion is the answer and nothing else."""
        correct = _bare(completion) == _bare(example.answer)
        reason = "equal" if correct else f"expected {example.answer:.60}"
        return Verdict.of(correct, completion.strip()[:200] or None, reason)


class Numeric(Kind):
    """A number."""

    system = NUMBER_LAST

    def solution(self, example: Example) -> str:
        """A last line `#### N`."""
        return f"#### {example.answer}"

    def read(self, field: Read, where: str) -> Asked:
        """The answer is a number, or text that is nothing else."""
        value = field("answer", (str, int, float, Decimal))
        if isinstance(value, float) and len(Decimal(repr(value)).normalize().as_tuple().digits) > 15:
            unsure = "has more than 15 digits, as fractions have that a computer rounded"
            raise DataError(f"{where}: the answer {value!r} {unsure}; round it, or write the digits as text")
        if isinstance(value, bool) or parse_number(str(value)) is None:
            raise DataError(f"{where}: the answer {value!r:.60} is no number; correct the row, or set verifier: exact")
        return Asked(str(value).strip())

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the last final answer of the completion equals the number."""
        return verify_number(example.answer, completion)


class Choice(Kind):
    """One of several options."""

    verify_in = "workers"
    needs = ("choices",)
    system = arc.SYSTEM
    prompt = arc.PROMPT
    shown = ("question", "options")

    def solution(self, example: Example) -> str:
        """The line with the letter."""
        return arc.final_line(example.answer)

    def read(self, field: Read, where: str) -> Asked:
        """The answer is an option's letter, its text or, where it has one, its label; the model sees letters.

        They follow the order of the row, whose choices are a list of texts, or texts and labels as in ARC.
        """
        choices, labels = field("choices", object), [*arc.LETTERS]
        if isinstance(choices, Mapping) and {"text", "label"} <= choices.keys():
            labels, choices = arc.labels_and_texts(choices, where)
        if not isinstance(choices, list):
            forms = "a list of texts, or {text: [...], label: [...]}"
            raise DataError(f"{where}: the choices are {choices!r:.60}; give {forms}")
        if isinstance(value := field("answer", object), int | float) and not isinstance(value, bool):
            unsure = "is a number, which may count from 0 or from 1"
            raise DataError(f"{where}: the answer {value} {unsure}; give the option's letter or its text")
        texts, answer = choices, field("answer", str).strip()
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{where}: the choices hold one that is no text or blank; correct or drop the row")
        texts = [text.strip() for text in texts]
        alike = len(set(texts)) < len(texts)
        if alike or not 2 <= len(texts) <= len(arc.LETTERS):
            what = "two of the choices are the same" if alike else f"there are {len(texts)} choices"
            raise DataError(f"{where}: {what}; 2 to {len(arc.LETTERS)} that differ are needed")
        options = dict(zip(arc.LETTERS, texts, strict=False))
        named = zip(options, labels, texts, strict=False)
        gold = {letter for letter, label, text in named if answer in (label, text)}
        if len(gold) != 1:
            said = "none" if not gold else "more than one"
            raise DataError(f"{where}: the answer {answer!r:.60} names {said} of the choices; give a letter or a text")
        fields = {"options": MappingProxyType(options)}
        return Asked(gold.pop(), {"options": arc.lettered(options)}, fields)

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the last final answer of the completion is the right option."""
        return verify_choice(example.answer, example.fields["options"], completion)


class Code(Kind):
    """A program."""

    verify_in = "sandbox"
    needs = ("tests",)
    system = _code.SYSTEM
    prompt = MBPP.user
    shown = MBPP.wording_fields

    def solution(self, example: Example) -> str:
        """The program in one Markdown code block."""
        return _code.in_block(example.answer)

    def read(self, field: Read, where: str) -> Asked:
        """The answer is a solution, which says what the tests use of one; the first test is shown."""
        tests, answer = field("tests", (list, str)), field("answer", str)
        tests = [tests] if isinstance(tests, str) else tests
        if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
            raise DataError(f"{where}: the tests hold none, or one that is no text; correct or drop the row")
        names = _code.used_names(tests, answer, where)
        _code.check_tests(tests, names, where)
        fields = _code.fields_of(tests, names)
        return Asked(answer, {"test": tests[0].strip()}, fields)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {"exact": Exact(), "numeric": Numeric(), "choice": Choice(), "code": Code()}
)
