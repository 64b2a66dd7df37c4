"""What builders make of a study: tables and figures, written as Markdown, CSV and PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        name: File name without ending: `table4`.
        title: One line.
        columns: Heads.
        rows: As many texts as columns; Markdown, so a cell may link its run folder.
        notes: Lines under it.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: File name without ending: `figure4`.
        title: One line, also its alternative text.
        draw: Returns a matplotlib figure.
        notes: Lines under it.
    """

    name: str
    title: str
    draw: Callable[[], Any]
    notes: Sequence[str] = ()
