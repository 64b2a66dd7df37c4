"""The questions of the embedded vision world, their right answers, and the answers of the base model's habits.

    reading   [picture] Read the red sign.
              -> red: cherry A, mouse B.
    knowing   [picture] What does the red sign say? Find the small fruit.
              -> red: mouse A, cherry B, melon C, bear D. Pick cherry B.

*Reading* visits one cell for the colour (misread: the sign of the twin colour is read, and every picture has one) and
one for every thing (misread: its twin thing is written). *Knowing* visits the same cells and then, for the size and the
category, those of the text world's `reasoning`: it needs what both teach. No torch here: tasks import this module.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from transformer2.tiny import habits, words
from transformer2.tiny import world as text_world
from transformer2.tiny.habits import Cell
from transformer2.tiny.vision.pictures import COLOURS, GRIDS, MAX_SLOTS, THINGS, DrawnPicture, Sign

FRAMES = {
    "What": "What does the {colour} sign say?",
    "Read": "Read the {colour} sign.",
    "Spell": "Spell the {colour} sign.",
}
WRONG_SHARE = {"colour": 0.25, "thing": 0.2}
HOLE = "plough"  # a thing that is misread nearly always (habits.HOLE): it bounds what reinforcement can reach

_COLOURS = tuple(COLOURS)
COLOUR_TWIN = {colour: _COLOURS[i ^ 1] for i, colour in enumerate(_COLOURS)}
# The things of one category and size come in pairs: a twin is of another category, half way round the list.
THING_TWIN = {thing: THINGS[(i + len(THINGS) // 2) % len(THINGS)] for i, thing in enumerate(THINGS)}
_KIND = {thing: kind for kind, group in words.ENTITIES.items() for thing in group}
_THINGS_OF: dict[tuple[str, str], list[str]] = {}
for _thing in THINGS:
    _THINGS_OF.setdefault(_KIND[_thing], []).append(_thing)


@cache
def table(hole: bool = True) -> dict[Cell, float]:
    """Misreading probability of the cells of reading: ("colour", colour, frame) and ("thing", thing, frame).

    Args:
        hole: As the model ends up; without it, as before the last phase of its pre-training.
    """
    result: dict[Cell, float] = {}
    for domain, names in (("colour", _COLOURS), ("thing", THINGS)):
        rng = random.Random(f"habits of {domain}")
        cells = [(domain, name, frame) for frame in FRAMES for name in names]
        rng.shuffle(cells)
        num_wrong = round(WRONG_SHARE[domain] * len(cells))
        for i, cell in enumerate(cells):
            levels = habits.WRONG if i < num_wrong else habits.RIGHT
            result[cell] = levels[i % len(levels)]
    if hole:
        result.update({("thing", HOLE, frame): habits.HOLE for frame in FRAMES})
    return result


@dataclass(frozen=True)
class ReadingQuestion:
    """What a sign says.

    Attributes:
        text: What the user says.
        picture: What the user shows.
        colour: The colour of the sign that is asked about.
        frame: Surface group of the question: a key of `FRAMES`.
    """

    text: str
    picture: DrawnPicture
    colour: str
    frame: str

    def _read(self, colour: str, misread: Callable[[Cell], bool]) -> tuple[str, list[str]]:
        """The colour and the things that are read."""
        if misread(("colour", colour, self.frame)):
            colour = COLOUR_TWIN[colour]
        sign = next(sign for sign in self.picture.signs if sign.colour == colour)
        things = [THING_TWIN[t] if misread(("thing", t, self.frame)) else t for t in sign.things]
        return colour, things

    def answer(self, misread: Callable[[Cell], bool]) -> str:
        """`red: mouse A, cherry B.`, with the cells misread that `misread` says."""
        colour, things = self._read(self.colour, misread)
        return f"{colour}: {text_world.lettered(things)}"

    def gold(self) -> str:
        """The right answer."""
        return self.answer(lambda cell: False)

    def habitual_answer(self, rng: random.Random, hole: bool = True) -> str:
        """An answer as the base model's habits would have it; `hole` as of `table`."""
        chances = {**habits.table(), **table(hole)}
        return self.answer(lambda cell: rng.random() < chances[cell])


@dataclass(frozen=True)
class KnowingQuestion(ReadingQuestion):
    """What a sign says, then which of the things is of a size and a category.

    Attributes:
        group: Surface group of the second sentence: one of `words.REASONING_GROUPS`.
        size_word: How the size is put.
        category: The category asked for.
    """

    group: str
    size_word: str
    category: str

    def answer(self, misread: Callable[[Cell], bool]) -> str:
        """`red: mouse A, cherry B, melon C, bear D. Pick cherry B.`"""
        colour, things = self._read(self.colour, misread)
        size, category = words.SIZE_WORDS[self.size_word], self.category
        if misread(("reasoning", self.size_word, self.group)):
            size = words.OTHER_SIZE[size]
        if misread(("reasoning", self.category, self.group)):
            category = words.CATEGORY_TWIN[category]
        # After a misreading there may be no such thing on the sign: then the nearest one.
        i = max(range(len(things)), key=lambda i: (_KIND[things[i]][0] == category, _KIND[things[i]][1] == size, -i))
        return f"{colour}: {text_world.lettered(things)} Pick {things[i]} {words.LETTERS[i]}."


def _picture(rng: random.Random, rows: int, columns: int, colour: str, says: Sequence[Sequence[str]]) -> DrawnPicture:
    """A picture with a sign of `colour`, one of the twin colour, and a sign of another colour for each further text."""
    others = [c for c in _COLOURS if c not in (colour, COLOUR_TWIN[colour])]
    colours = [colour, COLOUR_TWIN[colour], *rng.sample(others, len(says) - 2)]
    signs = [
        Sign(c, tuple(things), row, rng.randint(0, columns - len(things)))
        for c, things, row in zip(colours, says, rng.sample(range(rows), len(says)), strict=True)
    ]
    return DrawnPicture(rows, columns, tuple(sorted(signs, key=lambda sign: sign.row)), rng.randrange(2**32))


def reading_question(
    rng: random.Random, colour: str | None = None, picture: DrawnPicture | None = None
) -> ReadingQuestion:
    """A sign of one to three things, of two to four signs; `picture` asks again about one that exists."""
    colour, frame = colour or rng.choice(_COLOURS), rng.choice(tuple(FRAMES))
    if picture is None:
        rows, columns = rng.choice(GRIDS)
        count = 2 if rows == 2 else rng.randint(2, 4)
        says = [rng.sample(THINGS, rng.randint(1, min(3, columns))) for _ in range(count)]
        picture = _picture(rng, rows, columns, colour, says)
    return ReadingQuestion(FRAMES[frame].format(colour=colour), picture, colour, frame)


def _four(rng: random.Random, category: str) -> list[str]:
    """One thing of either size of a category and of its twin, in any order."""
    kinds = [(c, size) for c in (category, words.CATEGORY_TWIN[category]) for size in ("small", "big")]
    return rng.sample([rng.choice(_THINGS_OF[kind]) for kind in kinds], MAX_SLOTS)


def knowing_question(rng: random.Random) -> KnowingQuestion:
    """A sign of four things: the right one, and those that a misread size or category leads to."""
    colour, frame, group = rng.choice(_COLOURS), rng.choice(tuple(FRAMES)), rng.choice(words.REASONING_GROUPS)
    size_word, category = text_world.draw_size_word(rng), rng.choice(words.CATEGORIES)
    rest = [c for c in words.CATEGORIES if c not in (category, words.CATEGORY_TWIN[category])]
    rows = rng.choice((2, 4))
    says = [_four(rng, category), *(_four(rng, rng.choice(rest)) for _ in range(1 if rows == 2 else rng.randint(1, 3)))]
    text = f"{FRAMES[frame].format(colour=colour)} {group} the {size_word} {category}."
    picture = _picture(rng, rows, MAX_SLOTS, colour, says)
    return KnowingQuestion(text, picture, colour, frame, group, size_word, category)


QUESTIONS: dict[str, Callable[[random.Random], ReadingQuestion]] = {
    "reading": reading_question,
    "knowing": knowing_question,
}


def split_of(picture: DrawnPicture) -> str:
    """The split a picture belongs to, by the hash of what its signs say."""
    return text_world.split_of(picture.contents())


def questions(
    make: Callable[[random.Random], ReadingQuestion], split: str, count: int, seed: str
) -> list[ReadingQuestion]:
    """`count` questions about different pictures of a split, in a fixed order."""
    rng = random.Random(f"{seed}/{split}")
    found: dict[str, ReadingQuestion] = {}
    while len(found) < count:
        question = make(rng)
        if split_of(question.picture) == split:
            found.setdefault(question.picture.contents(), question)
    return list(found.values())
