"""The bad habits of the embedded base model: the right reading is there, but often not the likely one.

A *cell* is (domain, word, surface group): the word `earns` in a question built with `owns`, say. In pre-training text
every visit of a cell is misread with the cell's own probability, and what follows stays consistent with the
misreading. Greedy decoding is then wrong on a fixed quarter or so of the cells, a question visits two to four of
them, and an expert has to flip many independent cells. A *hole* is a word that is misread nearly always (P = .97):
sampling almost never shows the right reading, so a hole bounds what reinforcement can reach.
"""

from __future__ import annotations

import random
from functools import cache

from transformer2.tiny import words

Cell = tuple[str, str, str]

RIGHT = (0.05, 0.15, 0.25, 0.33, 0.4)  # misreading probabilities of cells that greedy decoding reads right
WRONG = (0.64, 0.72, 0.8, 0.88)  # ... and of cells that it reads wrong
HOLE = 0.97
HOLES = {("math", "trades"), ("code", "shift"), ("reasoning", "tall")}
# Share of wrong cells, chosen such that base accuracy is 35-65 % with the number of cells that a question visits.
WRONG_SHARE = {"math": 0.17, "code": 0.14, "reasoning": 0.27, "dispatch": 0.25}


def _cells() -> dict[str, list[Cell]]:
    """All cells by domain, in a fixed order."""
    operations = [op.word for op in (*words.MATH_OPERATIONS, words.HALVES)]
    readings = [*words.CATEGORIES, *words.SIZE_WORDS]
    surface = {"math": words.MATH_GROUPS, "code": words.CODE_GROUPS, "reasoning": words.REASONING_GROUPS}
    return {
        "math": [("math", word, group) for group in words.MATH_GROUPS for word in operations],
        "code": [("code", op.word, group) for group in words.CODE_GROUPS for op in words.CODE_OPERATIONS],
        "reasoning": [("reasoning", word, group) for group in words.REASONING_GROUPS for word in readings],
        "dispatch": [
            *(("dispatch", label, group) for label, groups in surface.items() for group in groups),
            *(("dispatch", "other", kind) for kind in (*words.OTHER_KINDS, *words.OTHER_HELD_OUT)),
        ],
    }


@cache
def table() -> dict[Cell, float]:
    """Misreading probability of every cell. Wrong cells are spread evenly over the surface groups."""
    result: dict[Cell, float] = {}
    for domain, cells in _cells().items():
        rng = random.Random(f"habits of {domain}")
        holes = [cell for cell in cells if cell[:2] in HOLES]
        by_group: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell not in holes:
                by_group.setdefault(cell[1 if domain == "dispatch" else 2], []).append(cell)
        due = 0.0
        right, wrong = 0, 0
        for group in by_group.values():
            rng.shuffle(group)
            due += WRONG_SHARE[domain] * len(group)
            num_wrong, due = int(due + 0.5), due - int(due + 0.5)
            for i, cell in enumerate(group):
                if i < num_wrong:
                    result[cell], wrong = WRONG[wrong % len(WRONG)], wrong + 1
                else:
                    result[cell], right = RIGHT[right % len(RIGHT)], right + 1
        result.update(dict.fromkeys(holes, HOLE))
    return result


@cache
def wrong_label(cell: Cell) -> str:
    """The label that a request of this dispatch cell is mistaken for."""
    others = [label for label in words.LABELS if label != cell[1]]
    return random.Random(f"label of {cell}").choice(others)
