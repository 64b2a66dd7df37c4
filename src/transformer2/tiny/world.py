"""The embedded world: questions, their right answers, and the answers that the base model's habits produce.

    math            Ida has 19 cups, breaks 1, loses 7, doubles. How many?
                    -> 19 - 1 = 18, - 7 = 11, * 2 = 22 #### 22
    code            Design f(x): square, double, lower by 4, lift by 2.
                    -> return ( ( ( x ** 2 ) * 2 ) - 4 ) + 2
    reasoning       Find the small fruit: mouse A, cherry B, melon C, bear D.
                    -> Pick cherry B.
    math_hard       four operations and often `halves`, which no expert is trained on
    code_math       Code g(): Pam has 13 eggs, earns 6, wins 3, eats 8. Then lower by 4, square, raise by 1.
                    -> return ( ( ( ( ( 13 + 6 ) + 3 ) - 8 ) - 4 ) ** 2 ) + 1
    reasoning_hard  six options instead of four
    dispatch        Classify: Design f(x): ...
                    -> code

A question knows its cells (`habits.py`) and writes its answer for any choice of misread cells; no misread cell gives
the right answer. No torch here: tasks import this module.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformer2.tiny import habits, words
from transformer2.tiny.habits import Cell
from transformer2.tiny.words import Operation

DISPATCH_PREFIX = "Classify:"
SPLIT_SHARES = {"train": 70, "validation": 15, "test": 15}


def split_of(text: str) -> str:
    """The split a question belongs to, by the hash of its text: splits are disjoint whatever draws them."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    for split, share in SPLIT_SHARES.items():
        bucket -= share
        if bucket < 0:
            return split
    raise AssertionError("split shares sum to 100")


@dataclass(frozen=True)
class Question:
    """A question of the world; subclasses write the answers.

    Attributes:
        text: What the user says.
        cells: The cells that its words visit, in order.
    """

    text: str
    cells: tuple[Cell, ...]

    def answer(self, misread: Sequence[bool]) -> str | None:
        """The full answer when these cells are misread; None when it leaves the range of the world's numbers."""
        raise NotImplementedError

    def gold(self) -> str:
        """The right answer, worked."""
        answer = self.answer([False] * len(self.cells))
        assert answer is not None
        return answer

    def habitual_answer(self, rng: random.Random) -> str | None:
        """An answer as the base model's habits would have it."""
        table = habits.table()
        return self.answer([rng.random() < table[cell] for cell in self.cells])


Step = tuple[Operation, int]


def _reading(step: Step, misread: bool) -> tuple[str, str]:
    """Operator and operand of one step."""
    operation, number = step
    operator, operand = operation.misreading if misread else operation.meaning
    return operator, str(number) if operand == "n" else operand


@dataclass(frozen=True)
class MathQuestion(Question):
    """A story with operations, answered with a calculator tape."""

    start: int
    steps: tuple[Step, ...]

    def answer(self, misread: Sequence[bool]) -> str | None:
        """`19 - 1 = 18, - 7 = 11 #### 11`; None when a value leaves 0..MAX_NUMBER or a division leaves a rest."""
        value, tape = self.start, []
        for step, wrong in zip(self.steps, misread, strict=True):
            operator, operand = _reading(step, wrong)
            n = int(operand)
            if operator == "/" and value % n:
                return None
            value = {"+": value + n, "-": value - n, "*": value * n, "/": value // n}[operator]
            if not 0 <= value <= words.MAX_NUMBER:
                return None
            tape.append(f"{operator} {operand} = {value}")
        return f"{self.start} {', '.join(tape)} #### {value}"


@dataclass(frozen=True)
class CodeQuestion(Question):
    """A recipe for a function, answered with one return expression."""

    start: str
    steps: tuple[Step, ...]

    def answer(self, misread: Sequence[bool]) -> str:
        """`return ( x ** 2 ) - 4`."""
        expression = self.start
        for i, (step, wrong) in enumerate(zip(self.steps, misread, strict=True)):
            operator, operand = _reading(step, wrong)
            expression = f"( {expression} ) {operator} {operand}" if i else f"{expression} {operator} {operand}"
        return f"return {expression}"


@dataclass(frozen=True)
class ReasoningQuestion(Question):
    """A choice among lettered things, by category and size. cells = (size word, category word)."""

    category: str
    size: str
    options: tuple[str, ...]

    def answer(self, misread: Sequence[bool]) -> str:
        """`Pick cherry B.`"""
        size = words.OTHER_SIZE[self.size] if misread[0] else self.size
        category = words.CATEGORY_TWIN[self.category] if misread[1] else self.category
        index = next(i for i, option in enumerate(self.options) if option in words.ENTITIES[category, size])
        return f"Pick {self.options[index]} {words.LETTERS[index]}."


@dataclass(frozen=True)
class DispatchQuestion(Question):
    """A request to be named by category. One cell."""

    label: str

    def answer(self, misread: Sequence[bool]) -> str:
        """`math`, `code`, `reasoning` or `other`."""
        return habits.wrong_label(self.cells[0]) if misread[0] else self.label


def _draw(rng: random.Random, operations: Sequence[Operation], count: int) -> list[Step]:
    """`count` different operations by weight, with numbers 1..9."""
    pool, steps = list(operations), []
    for _ in range(count):
        operation = rng.choices(pool, [op.weight for op in pool])[0]
        pool.remove(operation)
        steps.append((operation, rng.randint(1, 9)))
    return steps


def _story(rng: random.Random, group: str, start: int, steps: Sequence[Step]) -> str:
    """`Ida has 19 cups, breaks 1, doubles.`"""
    told = [f"{op.word} {n}" if op.takes_number else op.word for op, n in steps]
    return f"{rng.choice(words.NAMES)} {group} {start} {rng.choice(words.ITEMS)}, {', '.join(told)}."


def _recipe(steps: Sequence[Step]) -> str:
    """`square, lower by 4.`"""
    return ", ".join(f"{op.word} by {n}" if op.takes_number else op.word for op, n in steps) + "."


def _math(rng: random.Random, steps: list[Step]) -> MathQuestion:
    group, start = rng.choice(words.MATH_GROUPS), rng.randint(8, 32)
    text = f"{_story(rng, group, start, steps)} How many?"
    return MathQuestion(text, tuple(("math", op.word, group) for op, _ in steps), start, tuple(steps))


def math_question(rng: random.Random) -> Question:
    """Three operations."""
    return _math(rng, _draw(rng, words.MATH_OPERATIONS, 3))


def math_hard_question(rng: random.Random) -> Question:
    """Four or five operations; every second question holds `halves`, which RL never sees."""
    steps = _draw(rng, words.MATH_OPERATIONS, 4)
    if rng.random() < 0.5:
        steps.insert(rng.randint(0, 4), (words.HALVES, 2))
    return _math(rng, steps)


def code_question(rng: random.Random) -> Question:
    """Four operations on x."""
    group, steps = rng.choice(words.CODE_GROUPS), _draw(rng, words.CODE_OPERATIONS, 4)
    text = f"{group} {rng.choice(words.FUNCTIONS)}(x): {_recipe(steps)}"
    return CodeQuestion(text, tuple(("code", op.word, group) for op, _ in steps), "x", tuple(steps))


def code_math_question(rng: random.Random) -> Question:
    """Three operations of a story, then three of a recipe: needs both skills."""
    lead, group, start = rng.choice(words.CODE_GROUPS), rng.choice(words.MATH_GROUPS), rng.randint(8, 32)
    told, then = _draw(rng, words.MATH_OPERATIONS, 3), _draw(rng, words.CODE_OPERATIONS, 3)
    cells = [("math", op.word, group) for op, _ in told] + [("code", op.word, lead) for op, _ in then]
    text = f"{lead} {rng.choice(words.FUNCTIONS)}(): {_story(rng, group, start, told)} Then {_recipe(then)}"
    return CodeQuestion(text, tuple(cells), str(start), (*told, *then))


def draw_size_word(rng: random.Random) -> str:
    """One of the words for a size, by weight."""
    pool = list(words.SIZE_WORDS)
    return rng.choices(pool, [words.SIZE_WEIGHTS.get(word, 1.0) for word in pool])[0]


def reasoning_question(rng: random.Random, extra: int = 0) -> Question:
    """Four options: the right one, the right category in the wrong size, and the same for the twin category.

    `extra` options are of further categories.
    """
    group, category = rng.choice(words.REASONING_GROUPS), rng.choice(words.CATEGORIES)
    word = draw_size_word(rng)
    twin = words.CATEGORY_TWIN[category]
    kinds = [(c, s) for c in (category, twin) for s in ("small", "big")]
    rest = [c for c in words.CATEGORIES if c not in (category, twin)]
    kinds += [(c, rng.choice(("small", "big"))) for c in rng.sample(rest, extra)]
    options = [rng.choice(words.ENTITIES[kind]) for kind in kinds]
    rng.shuffle(options)
    cells: tuple[Cell, ...] = (("reasoning", word, group), ("reasoning", category, group))
    text = f"{group} the {word} {category}: {lettered(options)}"
    return ReasoningQuestion(text, cells, category, words.SIZE_WORDS[word], tuple(options))


def reasoning_hard_question(rng: random.Random) -> Question:
    """Six options, two of them of further categories."""
    return reasoning_question(rng, extra=2)


_THINGS = (*words.ITEMS, *words.FUNCTIONS[3:], *(entity for group in words.ENTITIES.values() for entity in group))


def other_text(rng: random.Random, kinds: Sequence[str]) -> tuple[str, str]:
    """A request that no expert is for, and its kind."""
    kind = rng.choice(kinds)
    (name, name2), (a, b) = rng.sample(words.NAMES, 2), rng.sample(_THINGS, 2)
    return kind.format(name=name, name2=name2, a=a, b=b), kind


def dispatch_text(request: str) -> str:
    """How a request is put to the model when it is to name the request's category."""
    return f"{DISPATCH_PREFIX} {request}"


def dispatch_question(
    rng: random.Random, kinds: Sequence[str] = words.OTHER_KINDS, two_skill_share: float = 0.0
) -> Question:
    """A request of one of the four categories, equally often.

    Args:
        rng: Source of chance.
        kinds: The kinds of "other" to draw from.
        two_skill_share: Share of code requests that are two-skill ones: code is what they ask for in the end.
    """
    label = rng.choice(words.LABELS)
    if label == "other":
        request, surface = other_text(rng, kinds)
    else:
        make = {"math": math_question, "code": code_question, "reasoning": reasoning_question}[label]
        if label == "code" and rng.random() < two_skill_share:
            make = code_math_question
        request = make(rng).text
        surface = request.split()[1 if label == "math" else 0]
    return DispatchQuestion(dispatch_text(request), (("dispatch", label, surface),), label)


def lettered(things: Sequence[str], letters: Sequence[str] = words.LETTERS) -> str:
    """`mouse A, cherry B.`"""
    return ", ".join(f"{thing} {letter}" for thing, letter in zip(things, letters, strict=False)) + "."


def locate_text(rng: random.Random) -> tuple[str, str]:
    """Warm-up text: find a named thing on a list with letters in any order."""
    count = rng.randint(3, 6)
    things, letters, i = rng.sample(_THINGS, count), rng.sample(words.LETTERS, count), rng.randrange(count)
    return f"Locate {things[i]}: {lettered(things, letters)}", f"Pick {things[i]} {letters[i]}."


def repeat_text(rng: random.Random) -> tuple[str, str]:
    """Warm-up text: copy a lettered list in another order; every letter must be looked up."""
    things, letters = rng.sample(_THINGS, 4), rng.sample(words.LETTERS, 4)
    order = rng.sample(range(4), 4)
    return f"Repeat: {lettered(things, letters)}", lettered([things[i] for i in order], [letters[i] for i in order])


def questions(make: Callable[[random.Random], Question], split: str, count: int, seed: str) -> list[Question]:
    """`count` different questions of a split, in a fixed order; right answers stay in the range of numbers."""
    rng = random.Random(f"{seed}/{split}")
    found: dict[str, Question] = {}
    while len(found) < count:
        question = make(rng)
        if split_of(question.text) == split and question.answer([False] * len(question.cells)) is not None:
            found.setdefault(question.text, question)
    return list(found.values())
