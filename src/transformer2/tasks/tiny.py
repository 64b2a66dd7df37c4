"""The tasks of the embedded text world (`transformer2.tiny.world`): what they ask, and strict verifiers.

Every example has `fields["solution"]`, a complete right answer in the model's own format (for next-token training and
for the likelihood of right answers), alongside `answer`, which the verifier compares with.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from transformer2.tasks import _tiny_program
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.tiny import words, world
from transformer2.types import Example, Verdict

# Splits of a task and where in the world they come from: (split of the question hash, number of rows).
SPLITS = {"train": ("train", 2048), "validation": ("validation", 256), "test": ("test", 512)}
UNSEEN_SPLITS = {"few_shot": ("validation", 64), "test": ("test", 512)}

_INTEGER = re.compile(r"-?\d{1,9}")
_CHOICE = re.compile(r"Pick (\w+) ([A-Z])\s?\.")


class TinyTask(Task):
    """A task whose questions are drawn from an embedded world, the same ones on every machine.

    Inline: the verifiers split and match text in linear time, and `_tiny_program` limits length, depth and values.

    Attributes:
        ask: Draws one question with a `random.Random`.
        draw: The world's `questions`: draws so many different ones of a split.
        sources: Split -> where in the world it comes from.

    Args:
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}`. The embedded model knows few words besides its own.
    """

    max_new_tokens: ClassVar[int] = 40
    verify_in = "inline"
    sources: ClassVar[dict[str, tuple[str, int]]] = SPLITS
    ask: ClassVar[Callable[..., Any]]
    draw: ClassVar[Callable[..., list[Any]]] = staticmethod(world.questions)

    def __init__(self, system: str | None = None, prompt: str = "{question}") -> None:
        self.wording = Wording(self.name, system, prompt, ("question",))

    @classmethod
    def question(cls, rng: random.Random, split: str) -> Any:
        """One question, as drawn for a split."""
        return cls.ask(rng)

    def answer(self, question: Any) -> str:
        """What `verify` compares with."""
        raise NotImplementedError

    def fields(self, question: Any) -> dict[str, str]:
        """Fields of an example besides the solution."""
        return {}

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in a fixed order; `data_dir` is not used."""
        self.check_split(split)
        return [
            Example(
                f"{self.name}/{split}/{row}",
                self.wording.messages(question=question.text),
                self.answer(question),
                MappingProxyType({"solution": question.gold(), **self.fields(question)}),
                (question.picture,) if self.pictures else (),
            )
            for row, question in enumerate(_questions(type(self), split))
        ]

    def solution(self, example: Example) -> str | None:
        """The worked steps."""
        return example.fields.get("solution")


@cache
def _questions(task: type[TinyTask], split: str) -> list[Any]:
    """Drawn once a process, whatever the wording: a run reads its splits several times."""
    source, count = task.sources[split]
    return task.draw(lambda rng: task.question(rng, split), source, count, seed=task.name)


def compared(correct: bool, found: str) -> Verdict:
    """The verdict on what was found in a completion."""
    return Verdict.of(correct, found, "right" if correct else "wrong answer")


class TinyMath(TinyTask):
    """Short stories with three operations on a number, answered with a calculator tape (the world's GSM8K).

    Example:
        user       Trumak carries 18 jars, sells 3, buys 1, trades 2. How many?
        assistant  18 - 3 = 15, + 1 = 16, - 2 = 14 #### 14
    """

    name = "tiny_math"
    description = "a short story about a number of things that grows and shrinks; the question is how many there are"
    ask = staticmethod(world.math_question)

    def solution(self, example: Example) -> str | None:
        """The worked steps; of a row without them the last line."""
        return super().solution(example) or f"#### {example.answer}"

    def answer(self, question: world.Question) -> str:
        """The number."""
        return question.gold().split("####")[1].strip()

    def verify(self, example: Example, completion: str) -> Verdict:
        """Exactly one `####`, with one integer and nothing else behind it."""
        _, *finals = completion.split("####")
        if len(finals) != 1:
            return Verdict.of(False, None, "no final answer" if not finals else "several final answers")
        found = finals[0].strip()
        if not _INTEGER.fullmatch(found):
            return Verdict.of(False, None, "final answer is not one integer")
        return compared(int(found) == int(example.answer), found)


class TinyMathHard(TinyMath):
    """Four or five operations, half of them with `halves`, which no expert is trained on (the world's MATH); unseen.

    Example:
        user       Drelat carries 26 vunik, doubles, sells 2, loses 3, breaks 7, halves. How many?
        assistant  26 * 2 = 52, - 2 = 50, - 3 = 47, - 7 = 40, / 2 = 20 #### 20
    """

    name = "tiny_math_hard"
    description = "a long story about a number of things; the question is how many there are"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS
    ask = staticmethod(world.math_hard_question)


class TinyCode(TinyTask):
    """Recipes of four operations on x, answered with one return expression (the world's MBPP).

    Example:
        user       Make drokat(x): lower by 6, triple, raise by 1, lift by 6.
        assistant  return ( ( ( x - 6 ) * 3 ) + 1 ) + 6
    """

    name = "tiny_code"
    description = "a recipe for a small function; the answer is its return statement"
    ask = staticmethod(world.code_question)

    def answer(self, question: world.Question) -> str:
        """The right statement."""
        return question.gold()

    def fields(self, question: world.Question) -> dict[str, str]:
        """`argument`: the function's, empty when it takes none."""
        return {"argument": "x" if "(x)" in question.text else ""}

    def verify(self, example: Example, completion: str) -> Verdict:
        """The expression must give the right value on every input. Nothing is ever executed."""
        argument = example.fields["argument"]
        wanted = _tiny_program.outputs(example.answer, argument)
        try:
            found = _tiny_program.outputs(completion, argument)
        except _tiny_program.ProgramError as error:
            return Verdict.of(False, None, str(error))
        return compared(found == wanted, completion.strip())


class TinyCodeMath(TinyCode):
    """Three operations of a story, then three of a recipe (the world's HumanEval); unseen.

    Example:
        user       Design skuxit(): Eva has 21 zupok, earns 2, sells 2, finds 7. Then square, lower by 8, raise by 1.
        assistant  return ( ( ( ( ( 21 + 2 ) - 2 ) + 7 ) ** 2 ) - 8 ) + 1
    """

    name = "tiny_code_math"
    description = "a story about a number of things and then a recipe; the answer is a return statement"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS
    ask = staticmethod(world.code_math_question)


class TinyReasoning(TinyTask):
    """Choices among four lettered things by size and category (the world's ARC-Easy); the letter is compared.

    Example:
        user       Name the short vehicle: grekap A, trofak B, whale C, skarok D.
        assistant  Pick grekap A.
    """

    name = "tiny_reasoning"
    description = "a choice among lettered things; the answer is a letter"
    ask: ClassVar[Callable[..., Any]] = staticmethod(world.reasoning_question)

    def answer(self, question: world.Question) -> str:
        """The letter."""
        return question.gold().removesuffix(".")[-1]

    def verify(self, example: Example, completion: str) -> Verdict:
        """One sentence with one letter; the letter counts."""
        match = _CHOICE.fullmatch(completion.strip())
        if not match:
            return Verdict.of(False, None, "not one choice of the form 'Pick <thing> <letter>.'")
        return compared(match[2] == example.answer, match[2])


class TinyReasoningHard(TinyReasoning):
    """Choices among six lettered things (the world's ARC-Challenge); unseen.

    Example:
        user       Choose the tall garment: castle A, hut B, cap C, whale D, blutik E, menuk F.
        assistant  Pick menuk F.
    """

    name = "tiny_reasoning_hard"
    description = "a choice among six lettered things; the answer is a letter"
    splits = ("few_shot", "test")
    sources = UNSEEN_SPLITS
    ask = staticmethod(world.reasoning_hard_question)


class TinyDispatch(TinyTask):
    """Requests to be named by category: math, code, reasoning or other. Trains the classification expert.

    Example:
        user       Classify: Name the small animal: elephant A, bee B, blutik C, truck D.
        assistant  reasoning

    Some kinds of "other" stand in the test split only (`transformer2.tiny.words.OTHER_HELD_OUT`; `fields["held_out"]`
    is "yes"). `prompt` turns any question into a dispatch question.
    """

    name = "tiny_dispatch"
    description = "names the category of a request"
    labels = words.LABELS
    max_new_tokens = 4

    def prompt(self, request: str) -> str:
        """The content of the user message that asks for the category of a request."""
        return self.wording.fill(question=world.dispatch_text(request))

    @staticmethod
    def label_of(task: str | None) -> str | None:
        """The category of a task's requests; None when it is none of the experts'."""
        label = (task or "").removeprefix("tiny_")
        return label if label in words.LABELS else None

    @classmethod
    def question(cls, rng: random.Random, split: str) -> world.Question:
        """Four categories equally often; half of the test split's "other" requests are of held-out kinds."""
        held_out = split == "test" and rng.random() < 0.5
        return world.dispatch_question(rng, words.OTHER_HELD_OUT if held_out else words.OTHER_KINDS)

    def answer(self, question: world.Question) -> str:
        """The category."""
        return question.gold()

    def fields(self, question: world.Question) -> dict[str, str]:
        """`held_out`: whether the request is of a kind that only `test` has."""
        return {"held_out": "yes" if question.cells[0][2] in words.OTHER_HELD_OUT else "no"}

    def verify(self, example: Example, completion: str) -> Verdict:
        """One word, one of the categories."""
        found = completion.strip()
        if found not in self.labels:
            return Verdict.of(False, None, "not a category")
        return compared(found == example.answer, found)
