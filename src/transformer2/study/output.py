"""What builders make of a study: tables and figures, written as Markdown, CSV and PNG."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer2.files import write_file, write_text

_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")


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

    def markdown(self) -> str:
        """Title, table and notes."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = [f"| {' | '.join(map(_cell, line))} |" for line in lines]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", *table, *(["", *notes] if notes else [])]) + "\n"

    def csv(self) -> str:
        """Heads and rows, links stripped to their texts."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [without_links(cell) for cell in line] for line in (self.columns, *self.rows)
        )
        return text.getvalue()

    def text(self) -> str:
        """Title and table for a terminal: links as their texts, without the columns of the paper's figures."""
        kept = [i for i, head in enumerate(self.columns) if not head.startswith("paper: ")]
        lines = [[" ".join(without_links(line[i]).split()) for i in kept] for line in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([self.title, *(f"  {line.rstrip()}" for line in padded)])


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

    def markdown(self) -> str:
        """The picture, which stands in the same folder, and the notes."""
        picture = f"![{self.title}]({self.name}.png)"
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([picture, "", f"**{self.title}**", *(["", *notes] if notes else [])]) + "\n"

    def png(self) -> bytes:
        """The picture; the same bytes for the same figure and version of matplotlib."""
        picture = io.BytesIO()
        self.draw().savefig(picture, format="png", dpi=150, metadata={"Software": None})
        return picture.getvalue()


def write_outputs(outputs: Sequence[Table | Figure], folder: Path) -> list[Path]:
    """Write tables as Markdown and CSV, figures as PNG; each file whole or absent.

    Args:
        outputs: What a builder made.
        folder: That of study.json, which links are relative to.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for output in outputs:
        for stale in ["png"] if isinstance(output, Table) else ["md", "csv"]:  # "not run", until it was, or the reverse
            (folder / f"{output.name}.{stale}").unlink(missing_ok=True)
        if isinstance(output, Table):
            for ending, text in (("md", output.markdown()), ("csv", output.csv())):
                files.append(folder / f"{output.name}.{ending}")
                write_text(files[-1], text)
        else:
            files.append(folder / f"{output.name}.png")
            write_file(files[-1], output.png())
    return files


def without_links(text: str) -> str:
    """Markdown with its links as plain texts."""
    return _LINK.sub(r"\1", text)


def with_links(text: str, target: Callable[[str], str | None]) -> str:
    """Markdown with other targets of its links; a link without one becomes plain text."""

    def replaced(link: re.Match[str]) -> str:
        found = target(link[2])
        return link[1] if found is None else f"[{link[1]}]({found})"

    return _LINK.sub(replaced, text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
