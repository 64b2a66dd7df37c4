"""The drawn pictures: the same bytes everywhere, and what they show."""

from __future__ import annotations

import hashlib
import pickle
import random

import numpy as np
import pytest

from transformer2.tiny.vision import world
from transformer2.tiny.vision.pictures import CELL, COLOURS, GRIDS, THINGS, DrawnPicture, Sign, glyphs, pixels

DIGESTS = {
    (2, 4): "9a01e56c26bb1a7e",
    (4, 2): "1529c60bc08ca468",
    (4, 4): "a20a57d824962dfa",
}


def picture(rows: int, columns: int) -> DrawnPicture:
    signs = (Sign("red", ("cherry", "mouse"), 0, 0), Sign("green", ("train",), 1, columns - 1))
    return DrawnPicture(rows, columns, signs, seed=7)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_pixels_are_the_same_on_every_machine(grid):
    assert hashlib.sha256(pixels(picture(*grid)).tobytes()).hexdigest()[:16] == DIGESTS[grid]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_picture_reference_opens_to_its_pixels_and_knows_its_size(grid):
    drawn = picture(*grid)
    opened = drawn.open()
    assert np.array_equal(np.asarray(opened), pixels(drawn)) and opened.mode == "RGB"
    assert drawn.size() == opened.size == (CELL * grid[1], CELL * grid[0])
    drawn.check()
    again = pickle.loads(pickle.dumps(drawn))
    assert again == drawn and again.digest() == drawn.digest()
    assert len(pickle.dumps(drawn)) < 1000  # a reference, not pixels


def test_another_seed_another_picture_that_says_the_same():
    a, b = picture(4, 4), DrawnPicture(4, 4, picture(4, 4).signs, seed=8)
    assert a.contents() == b.contents() and a.digest() != b.digest()


def test_every_thing_has_a_pictogram_of_its_own_that_no_shift_confuses():
    names = list(glyphs())
    assert tuple(names) == THINGS and len(set(THINGS)) == 24
    for i, a in enumerate(names):
        for b in names[:i]:
            for y in (-1, 0, 1):
                for x in (-2, -1, 0, 1, 2):
                    first = np.pad(glyphs()[a], ((1, 1), (2, 2)))
                    second = np.roll(np.pad(glyphs()[b], ((1, 1), (2, 2))), (y, x), (0, 1))
                    assert (first ^ second).sum() >= 9, (a, b)


def test_a_cell_shows_the_colour_and_the_pictogram_of_its_sign():
    rng = random.Random(0)
    for _ in range(50):
        drawn = world.reading_question(rng).picture
        array = pixels(drawn).astype(int)
        for sign in drawn.signs:
            for slot, thing in enumerate(sign.things):
                x, y = CELL * (sign.column + slot), CELL * sign.row
                cell = array[y : y + CELL, x : x + CELL]
                ink = cell.max(-1) < 60
                assert ink[:7, :7].sum() == glyphs()[thing].sum()
                paper = cell[~ink].mean(0)
                assert min(COLOURS, key=lambda c: abs(paper - COLOURS[c]).sum()) == sign.colour
