"""The pictures of the embedded vision world: coloured signs with pictograms, among shapes.

A picture is a grid of cells of 8 x 8 pixels, 2 or 4 of them high and wide. A sign is a run of one to four cells of one
colour; every cell of it (a *slot*) shows the pictogram of a thing, with one to four dots underneath that number the
slot, and the last slot ends in a post. The other cells are empty or hold a shape, of any colour.

Everything is drawn in whole numbers from `random.Random`, with no font, no curve and no smoothing: the same pixels on
every machine. numpy and Pillow are imported when a picture is drawn. No torch here.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from transformer2.pictures import Picture
from transformer2.tiny import words

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

CELL = 8  # pixels
MAX_SLOTS = 4
GRIDS = ((2, 4), (4, 2), (4, 4))  # rows and columns of cells
COLOURS = {
    "red": (214, 62, 58),
    "green": (70, 176, 92),
    "blue": (88, 122, 232),
    "yellow": (236, 208, 66),
    "purple": (170, 92, 200),
    "orange": (240, 146, 52),
}
# The things that have a pictogram: the first two of every category and size of the text world.
THINGS = tuple(thing for group in words.ENTITIES.values() for thing in group[:2])

_GLYPH_WIDTH, _GLYPH_HEIGHT = 5, 6
_MIN_DIFFERENCE = 9  # pixels in which two pictograms differ, wherever they stand in their cells
_INK = (24, 24, 32)
_NOISE = 12
_SHAPES = tuple(
    tuple(int(bit) for bit in rows.replace("/", ""))
    for rows in (
        "001100/011110/111111/111111/011110/001100",  # disc
        "111111/111111/111111/111111/111111/111111",  # square
        "001100/001100/011110/011110/111111/111111",  # triangle
        "001100/001100/111111/111111/001100/001100",  # cross
        "111111/100001/100001/100001/100001/111111",  # ring
    )
)


@dataclass(frozen=True)
class Sign:
    """One sign.

    Attributes:
        colour: One of `COLOURS`.
        things: What its slots show, from left to right.
        row: Row of the grid.
        column: Column of its first slot.
    """

    colour: str
    things: tuple[str, ...]
    row: int
    column: int


@dataclass(frozen=True)
class DrawnPicture(Picture):
    """What a picture shows; its pixels are drawn when they are asked for.

    Attributes:
        rows: Height in cells.
        columns: Width in cells.
        signs: The signs; no two in one row.
        seed: Of shapes, shades, noise, and where in its cell a pictogram stands.
    """

    rows: int
    columns: int
    signs: tuple[Sign, ...]
    seed: int

    @property
    def name(self) -> str:
        """What its signs say."""
        return f"with the signs {self.contents()}"

    def data(self) -> bytes:
        """As BMP: PNG's bytes depend on the version of zlib."""
        file = io.BytesIO()
        draw(self).save(file, "BMP")
        return file.getvalue()

    def size(self) -> tuple[int, int]:
        """(width, height), without drawing."""
        return CELL * self.columns, CELL * self.rows

    def contents(self) -> str:
        """What the signs say, as text: pictures of different splits never say the same."""
        return "; ".join(f"{sign.colour}: {' '.join(sign.things)}" for sign in self.signs)


@cache
def glyphs() -> dict[str, np.ndarray]:
    """The pictogram of every thing: (6, 5) of bool, in an invented script."""
    import numpy as np

    rng, found = random.Random("pictograms"), list[np.ndarray]()
    while len(found) < len(THINGS):
        bits = np.array([rng.randrange(2) for _ in range(_GLYPH_WIDTH * _GLYPH_HEIGHT)], bool)
        glyph = bits.reshape(_GLYPH_HEIGHT, _GLYPH_WIDTH)
        if 12 <= bits.sum() <= 19 and all(_difference(glyph, other) >= _MIN_DIFFERENCE for other in found):
            found.append(glyph)
    return dict(zip(THINGS, found, strict=True))


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    """Pixels in which two pictograms differ, at the shift at which they differ least."""
    import numpy as np

    padded = np.pad(a, ((1, 1), (2, 2)))
    height, width = b.shape
    least = height * width
    for y in range(3):
        for x in range(5):
            moved = np.zeros_like(padded)
            moved[y : y + height, x : x + width] = b
            least = min(least, int((padded ^ moved).sum()))
    return least


def pixels(picture: DrawnPicture) -> np.ndarray:
    """The picture as (height, width, 3) of uint8."""
    import numpy as np

    rng = random.Random(picture.seed)
    height, width = CELL * picture.rows, CELL * picture.columns
    ground = rng.randrange(196, 236)
    canvas = np.full((height, width, 3), ground, np.int16)
    taken = set()
    for sign in picture.signs:
        shade = [value + rng.randrange(-14, 15) for value in COLOURS[sign.colour]]
        for slot, thing in enumerate(sign.things):
            column = sign.column + slot
            taken.add((sign.row, column))
            cell = canvas[CELL * sign.row : CELL * (sign.row + 1), CELL * column : CELL * (column + 1)]
            cell[:] = shade
            y, x = rng.randrange(2), rng.randrange(3)
            cell[y : y + _GLYPH_HEIGHT, x : x + _GLYPH_WIDTH][glyphs()[thing]] = _INK
            cell[CELL - 1, 0 : 2 * slot + 1 : 2] = _INK
            if slot == len(sign.things) - 1:
                cell[:, CELL - 1] = _INK
    colours = tuple(COLOURS.values())
    for row in range(picture.rows):
        for column in range(picture.columns):
            if (row, column) not in taken and rng.randrange(2):
                shape = np.array(rng.choice(_SHAPES), bool).reshape(6, 6)
                y, x = CELL * row + rng.randrange(3), CELL * column + rng.randrange(3)
                canvas[y : y + 6, x : x + 6][shape] = rng.choice(colours)
    noise = np.frombuffer(rng.randbytes(canvas.size), np.uint8).reshape(canvas.shape) % (2 * _NOISE + 1)
    return (canvas + noise.astype(np.int16) - _NOISE).clip(0, 255).astype(np.uint8)


def draw(picture: DrawnPicture) -> Image:
    """The picture, in RGB."""
    from PIL import Image

    return Image.fromarray(pixels(picture))
