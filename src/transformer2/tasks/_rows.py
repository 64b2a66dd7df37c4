"""Rows of a data set, from a local folder or from the Hub: the one place that opens task data."""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer2.errors import DataError

__all__ = ["Row", "field_of", "load_rows"]

Row = Mapping[str, Any]
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", "-*.parquet")


def load_rows(
    name: str,
    split: str,
    data_dir: str | None,
    hub_id: str,
    config: str | None = None,
    revision: str | None = None,
) -> list[Row]:
    """All rows of a split, in the order of the source.

    Args:
        name: Folder name of the task's rows inside `data_dir`.
        split: Name of the split: a file `<split>.jsonl`, `.jsonl.gz` or `.parquet`, and the Hub's split.
        data_dir: A folder with those files, or one that holds such a folder called `name`; None reads the Hub.
        hub_id: Hub data set.
        config: Configuration of the Hub data set.
        revision: Commit or tag of the Hub data set; None takes the newest.

    Raises:
        DataError: Nothing there, unreadable, or the Hub is out of reach; the message names the file or the remedy.
    """
    if data_dir is None:
        return _hub_rows(name, split, hub_id, config, revision)
    root = Path(data_dir).expanduser()
    folders = [root / name, root / name / (config or ""), root, root / (config or "")]
    for folder in dict.fromkeys(folders):
        for suffix in _SUFFIXES:
            files = sorted(folder.glob(split + suffix))
            if files:
                return [row for file in files for row in _file_rows(file)]
    raise DataError(
        f"data_dir {data_dir!r} has no {name}/{split}.jsonl, .jsonl.gz or .parquet; put a copy of {hub_id} there"
    )


def field_of(row: Row, field: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """A field of a row.

    Args:
        row: One row.
        field: Its key.
        where: What the row is called in messages, e.g. "gsm8k/train/17".
        kind: Type or types the field must have; text must not be blank.

    Raises:
        DataError: Missing field, another type, or blank text; the message names the row and the field.
    """
    if field not in row:
        raise DataError(f"{where}: field {field!r} is missing; the row has {', '.join(map(repr, row)) or 'no fields'}")
    value = row[field]
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        shown = repr(value)
        raise DataError(f"{where}: field {field!r} is {shown[:60]}, which is not usable; correct or drop the row")
    return value


def _file_rows(file: Path) -> Sequence[Row]:
    if file.suffix == ".parquet":
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as e:
            raise DataError(f"{file}: reading parquet needs pyarrow; install transformer2[hub] or give .jsonl") from e
        try:
            rows: list[Row] = parquet.read_table(file).to_pylist()
        except (OSError, ValueError) as e:
            raise DataError(f"{file}: unreadable ({e}); copy it again") from e
        return rows
    rows, number = [], 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise DataError(f"{file}: line {number} is not a JSON object")
    except json.JSONDecodeError as e:
        raise DataError(f"{file}: line {number} is not JSON ({e.msg}); one object a line is expected") from e
    except (OSError, EOFError, UnicodeDecodeError) as e:  # BadGzipFile is an OSError, a cut file an EOFError
        raise DataError(f"{file}: unreadable after line {number} ({e}); copy it again") from e
    if not rows:
        raise DataError(f"{file}: no rows; copy it again")
    return rows


def _hub_rows(name: str, split: str, hub_id: str, config: str | None, revision: str | None) -> list[Row]:
    remedy = f"give data_dir, a folder with {name}/{split}.jsonl (rows of {hub_id})"
    try:
        import datasets
    except ImportError as e:
        raise DataError(
            f"reading {hub_id} from the Hub needs the extra transformer2[hub]; install it or {remedy}"
        ) from e
    try:
        return list(datasets.load_dataset(hub_id, config, split=split, revision=revision))
    except Exception as e:  # network, Hub and format errors have no common base class
        raise DataError(f"{hub_id} cannot be read from the Hub ({type(e).__name__}); {remedy}") from e
