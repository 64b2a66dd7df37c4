"""Figures: an empty one, a saved one, and the sheet of pictures of a run on pictures (figures/pictures.png)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer2.types import Answer, Record

__all__ = [
    "COLOURS",
    "HATCHES",
    "LINES",
    "MARKERS",
    "bar_style",
    "bare_figure",
    "picture_sheet",
    "pixels",
    "save_figure",
    "style",
]

# Okabe and Ito's palette, told apart by the colour-blind; markers and lines tell the same apart in grey. Not its
# yellow, which is not seen on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++")

SHOWN, COLUMNS, WIDTH = 12, 4, 34  # pictures, pictures a row, characters a line
TEXT_LINES = 2  # of each text; what is longer is cut


def style(index: int) -> dict[str, Any]:
    """Colour, marker and line of the index-th series, for `Axes.plot`."""
    i = index % len(COLOURS)
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[i]}


def bar_style(index: int) -> dict[str, Any]:
    """Colour and hatching of the index-th series, for `Axes.bar`."""
    i = index % len(COLOURS)
    return {"color": COLOURS[i], "hatch": HATCHES[i], "edgecolor": "white"}


def bare_figure(size: tuple[float, float]) -> Any:
    """An empty figure of so many inches: pyplot would keep all of a long run, and choose a backend for the process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # savefig, which writes other kinds of files too, draws it twice.
    (_canvas(figure).print_png if path.suffix == ".png" else figure.savefig)(path)
    return path


def pixels(figure: Any) -> np.ndarray:
    """A figure as it was saved, drawn where it has not been: uint8 (height, width, RGB)."""
    canvas = _canvas(figure)
    if figure.stale:
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _canvas(figure: Any) -> Any:
    """The canvas of a figure, which one of a user's own may not have."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not isinstance(figure.canvas, FigureCanvasAgg):
        FigureCanvasAgg(figure)
    return figure.canvas


def picture_sheet(records: Sequence[Record], result: str = "expert") -> Any:
    """Pictures of scored questions: first those that base and result answer differently, then others.

    Args:
        records: Of all scored questions.
        result: What the result is called.

    Returns:
        A matplotlib figure; None where no question has a picture.
    """
    seen = [r for r in records if r.images]
    if not seen:
        return None
    chosen = sorted(seen, key=lambda r: (r.base.credit == r.result.credit, r.row))[:SHOWN]
    rows = -(-len(chosen) // COLUMNS)
    figure = bare_figure((3.1 * COLUMNS, 4.1 * rows))
    for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, record in zip(figure.axes, chosen, strict=False):
        image = record.images[0].open()
        image.thumbnail((480, 480))
        axes.imshow(image, interpolation="nearest")
        says = {"base": _marked(record.base), result: _marked(record.result), "gold": record.gold}
        lines = [_cut(record.question), *(_cut(f"{name}: {text}") for name, text in says.items())]
        axes.text(0, -0.03, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8, parse_math=False)
    figure.suptitle(f"{len(chosen)} of {len(seen)} questions, those first that base and {result} answer differently")
    return figure


def _marked(answer: Answer) -> str:
    said = answer.verdict.extracted or answer.completion
    mark = {None: "not judged", 0.0: "wrong", 1.0: "right"}.get(answer.credit, f"{answer.credit or 0:.1f}")
    return f"{said.strip()} ({mark})"


def _cut(text: str) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), WIDTH, max_lines=TEXT_LINES, placeholder=" ...") or [""])
