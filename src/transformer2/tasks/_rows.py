"""Rows of a data set, from a local folder or from the Hub: the one place that opens task data."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from transformer2.errors import DataError, UserError, shown
from transformer2.files import check_directory, once_each
from transformer2.hub import hub_answers
from transformer2.pictures import PictureFile, PictureInTable, read_arrow
from transformer2.types import Example

__all__ = ["Row", "examples_of", "field_of", "hash_of", "in_split", "load_rows", "read_rows"]

LONGEST_LINE = 2**26  # bytes; a row of MBPP+ has some 10^5, and what holds no line break must not fill the memory
_SUFFIXES, _TABLES = ("jsonl", "jsonl.gz", "parquet", "arrow"), (".parquet", ".arrow")
_SHARD = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.")
_ALIKE = {"arc_easy", "arc_challenge", "humaneval", "humanevalplus", "textvqa", "okvqa"}  # rows do not tell these apart
# What comes of a stranger's row: nested too deep, a number too long, a list where text should be, code that is none.
_ODD = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError)


class Row(dict[str, Any]):
    """One row, and where it stands (`/data/gsm8k/test.jsonl, line 7`)."""

    source = ""


def load_rows(
    name: str,
    split: str,
    data_dir: str | None,
    hub_id: str,
    config: str | None = None,
    revision: str | None = None,
    pictures: str | None = None,
) -> list[Row]:
    """All rows of a split, in the order of the source.

    Args:
        name: Folder name of the task's rows inside `data_dir`.
        split: Name of the split: a file `<split>.jsonl`, `.jsonl.gz`, `.parquet` or `.arrow`, or its shards
            (`<split>-00000-of-00002.parquet`; `<split>/data-00000-of-00002.arrow` as `save_to_disk` writes them).
        data_dir: A folder with those files, or one that holds such a folder called `name`; None reads the Hub.
        hub_id: Hub data set.
        config: Configuration of the Hub data set.
        revision: Commit or tag of the Hub data set; None takes the newest.
        pictures: Column whose cells are pictures: rows hold a `Picture` there, a reference, never pixels. In JSON it
            is a path, relative to the file, or a list with one.

    Raises:
        DataError: Nothing there, not all of it there, unreadable, or the Hub is out of reach; the message names the
            file or the remedy.
    """
    if data_dir is None:
        return _hub_rows(name, split, hub_id, config, revision, pictures)
    check_directory(
        data_dir or ".", "data_dir", f"give a folder with {name}/{split}.jsonl, rows of {hub_id}", DataError
    )
    root = Path(os.path.expanduser(data_dir))
    seen: list[str] = []
    for folder in (root / name, root):
        folders = list(dict.fromkeys([folder, folder / (config or "")]))
        if files := _files_of(split, folders, seen):
            own = os.path.basename(os.path.abspath(folder)).lower().replace("-", "_")
            if own != name and {own, name} <= _ALIKE:
                raise DataError(f"data_dir {data_dir!r} has rows of {own}, not of {name}; give the folder of its rows")
            rows = [row for file in files for row in _file_rows(file, pictures)]
            _check_number(rows, split, folders, config)
            return rows
    found = f" (there is {', '.join(seen[:3])})" if seen else ""
    raise DataError(
        f"data_dir {data_dir!r} has no {name}/{split}.jsonl, .jsonl.gz, .parquet or .arrow{found}; "
        f"put a copy of {hub_id} there"
    )


def read_rows(path: str, pictures: str | None = None) -> list[Row]:
    """All rows of one file, in its order: JSON, one object a line, or .jsonl.gz, .parquet, .arrow.

    Args:
        path: The file.
        pictures: See `load_rows`.

    Raises:
        DataError: No such file, or unreadable; the message names it.
    """
    file = Path(os.path.expanduser(path))
    if not os.path.isfile(file):  # unlike Path.is_file, it takes a name that is too long for one that is not there
        what = "is no file" if os.path.exists(file) else "does not exist"
        raise DataError(f"{shown(path)} {what}; name a file with one JSON object a line")
    if file.suffix.lower() in (".csv", ".tsv"):
        convert = "pandas.read_csv(FILE, dtype=str).to_json(NEW, orient='records', lines=True)"
        raise DataError(f"{shown(path)}: {file.suffix} is not read; give .jsonl, .parquet or .arrow: {convert}")
    return _file_rows(file, pictures)


def examples_of(rows: Sequence[Row], make: Callable[[int, Row], Example | None]) -> list[Example]:
    """What `make` builds of each row and its number; None leaves the row out.

    Raises:
        DataError: A row cannot be used; the message names its file and line.
    """
    examples = []
    for i, row in enumerate(rows):
        try:
            example = make(i, row)
        except UserError as e:
            raise DataError(f"{e} ({row.source})") from e
        except _ODD as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
            raise DataError(f"{row.source}: the row cannot be used ({reason}); correct or drop it") from e
        if example is not None:
            examples.append(example)
    return examples


def field_of(row: Mapping[str, Any], field: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
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
        has = ", ".join(repr(key)[:40] for key in list(row)[:12]) or "no fields"
        raise DataError(f"{where}: field {field!r} is missing; the row has {has}")
    value = row[field]
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: field {field!r} is {value!r:.60}, which is not usable; correct or drop the row")
    return value


def hash_of(text: str) -> int:
    """A number that follows from the text alone: it assigns rows to splits whatever their order."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest())


def in_split(split: str, text: str, one_in: int) -> bool:
    """Whether a row of a data set's train split is in our `train`, or in our `validation`; all of its `test` are.

    Args:
        split: The split that is read.
        text: What tells the row apart; rows with the same text fall on the same side, whatever their order.
        one_in: Rows of the data set to each row of `validation`.
    """
    return split == "test" or (split == "validation") == (hash_of(text) % one_in == 0)


def _files_of(split: str, folders: Sequence[Path], seen: list[str]) -> list[Path]:
    """The file of a split in one of some folders, or all its shards; what only looks like one is added to `seen`.

    Raises:
        DataError: Two candidates, or shards that are missing.
    """
    candidates: dict[str, list[Path]] = {}
    for folder in folders:
        for file in sorted([*folder.glob(f"{split}[-.]*"), *(folder / split).glob("data-*")]):
            suffix = next((s for s in _SUFFIXES if file.name.endswith(f".{s}")), None)
            whole = file.name == f"{split}.{suffix}"
            if suffix is None or not file.is_file() or not (whole or suffix == "parquet" or _SHARD.search(file.name)):
                seen.append(file.name)
            else:
                candidates.setdefault(str(file if whole else file.parent / f"*.{suffix}"), []).append(file)
    if len(candidates) > 1:
        first, second = (files[0] for files in list(candidates.values())[:2])
        raise DataError(f"{first} and {second} are both the split {split!r}; keep one of them")
    files = next(iter(candidates.values()), [])
    shards = {file: match for file in files if (match := _SHARD.search(file.name))}
    if shards:
        last = next(iter(shards.values()))
        number = int(last[2])
        odd = [file for file in files if file not in shards or int(shards[file][2]) != number]
        if odd:
            raise DataError(f"{odd[0]} is not a shard of {files[0]}; keep one set of shards")
        files.sort(key=lambda file: int(shards[file][1]))
        have = [int(shards[file][1]) for file in files]
        start = int(have[-1] == number)  # some count from 1
        if len(have) != number or have != list(range(start, start + number)):
            missing = [str(i) for i in range(start, start + min(number, 10**5)) if i not in have]
            what = f"{', '.join(missing[:5])} is missing" if missing else "one is there twice"
            raise DataError(f"{files[0]}: of the {number} shards of {split!r}, {what}; copy the whole set again")
    return files


def _check_number(rows: Sequence[Row], split: str, folders: Sequence[Path], config: str | None) -> None:
    """Compare with `num_examples`, where a `dataset_info` lies alongside the rows (JSON, or in the data card)."""
    for folder in dict.fromkeys([*folders, *(f / split for f in folders)]):
        for name in ("dataset_info.json", "dataset_infos.json", "README.md"):
            if not (folder / name).is_file():
                continue
            try:
                text = (folder / name).read_text(encoding="utf-8")
                info = yaml.safe_load(text.split("---")[1]) if name == "README.md" else json.loads(text)
            except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
                continue  # somebody else's
            numbers = set(_numbers(info, split, config))
            if len(numbers) == 1 and numbers != {len(rows)}:
                raise DataError(
                    f"{rows[0].source.rpartition(', ')[0]}: {len(rows)} rows of {split!r} where {folder / name} says "
                    f"{numbers.pop()}; copy the whole set again"
                )


def _numbers(info: Any, split: str, config: str | None) -> Iterator[int]:
    """`num_examples` of a split in a `dataset_info`, of one configuration or by configuration."""
    if isinstance(info, list):
        for part in info:
            if isinstance(part, Mapping) and part.get("config_name") in (None, "default", config):
                yield from _numbers(part, split, config)
    if not isinstance(info, Mapping):
        return
    for key in ("dataset_info", config):
        yield from _numbers(info.get(key), split, config)
    splits = info.get("splits")
    for part in splits.values() if isinstance(splits, Mapping) else splits if isinstance(splits, list) else ():
        if isinstance(part, Mapping) and part.get("name") == split and isinstance(part.get("num_examples"), int):
            yield part["num_examples"]


def _file_rows(file: Path, pictures: str | None) -> list[Row]:
    rows = []
    for number, value in _table_rows(file, pictures) if file.suffix.lower() in _TABLES else _json_rows(file):
        rows.append(Row(value))
        rows[-1].source = f"{file}, {number}"
        if pictures is not None and pictures in value:
            rows[-1][pictures] = _picture(value[pictures], file, f"{file}, {number}")
    if not rows:
        raise DataError(f"{file}: no rows; copy it again, or give a file that has some")
    return rows


def _picture(named: Any, file: Path, where: str) -> Any:
    """The picture that a path names, or a list with one; anything else is left to whoever wants it."""
    if isinstance(named, list):
        if len(named) > 1:
            raise DataError(f"{where}: there are {len(named)} pictures, and a row has one; keep one, or drop the row")
        named = next(iter(named), None)
    if not isinstance(named, str) or not named.strip():
        return named
    picture = file.parent / os.path.expanduser(named)
    if not os.path.isfile(picture):
        raise DataError(f"{where}: the picture {shown(str(picture))} is not there; put it there")
    return PictureFile(str(picture))


def _table_rows(file: Path, pictures: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        table = None if file.suffix.lower() == ".parquet" else read_arrow(str(file))
        names = parquet.read_schema(file).names if table is None else table.column_names
        kept = [name for name in names if name != pictures]
        table = parquet.read_table(file, columns=kept) if table is None else table.select(kept)
        rows = table.to_pylist()
        for name, kind in zip(table.column_names, table.schema.types, strict=True):
            if str(kind) in ("float", "halffloat"):  # 0.1 is 0.1, not the double that is next to it
                as_stored = kind.to_pandas_dtype()
                for row in rows:
                    row[name] = None if row[name] is None else float(str(as_stored(row[name])))
    except Exception as e:  # Arrow's errors share no class with each other
        raise DataError(f"{file}: unreadable ({' '.join(str(e).split())[:120]}); copy it again") from e
    for i, row in enumerate(rows):
        if pictures is not None and pictures in names:
            row[pictures] = PictureInTable(str(file), i, pictures)
        yield f"row {i}", row


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else open(file, "rb") as f:
            while line := f.readline(LONGEST_LINE + 1):
                number += 1
                where = f"{file}: line {number}"
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{where} is longer than {LONGEST_LINE >> 20} MiB; one row a line is expected")
                text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")  # Windows marks UTF-8 so
                if text.strip():
                    yield f"line {number}", _json_row(text, where)
    except UnicodeDecodeError as e:
        raise DataError(f"{where} is not UTF-8 ({e.reason} at byte {e.start}); save the file as UTF-8") from e
    except (OSError, EOFError, zlib.error) as e:  # BadGzipFile is an OSError, a cut file an EOFError
        raise DataError(f"{file}: unreadable after line {number} ({e}); copy it again") from e


def _json_row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text, object_pairs_hook=once_each)
    except json.JSONDecodeError as e:
        raise DataError(f"{where} is not JSON ({e.msg}); one object a line is expected") from e
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, brackets in brackets
        raise DataError(f"{where} is not valid JSON ({' '.join(str(e).split())[:80]}); correct or drop the row") from e
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object; one object a line is expected")
    if "\\u" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise DataError(f"{where} holds half a character ({e.object[e.start]!a}); correct or drop the row") from e
    return row


def _hub_rows(
    name: str, split: str, hub_id: str, config: str | None, revision: str | None, pictures: str | None
) -> list[Row]:
    remedy = f"give data_dir (--data.data_dir), a folder with {name}/{split}.jsonl (rows of {hub_id})"
    try:
        import datasets

        if not hub_answers():
            datasets.config.HF_HUB_OFFLINE = True  # what is in the cache, or an error at once
        found = datasets.load_dataset(hub_id, config, split=split, revision=revision)
        references = _pictures_of(found, pictures) if pictures and pictures in found.column_names else []
        rows = [Row(row) for row in (found.remove_columns([pictures]) if references else found)]
    except ConnectionError as e:
        raise DataError(f"the Hub could not be reached for {hub_id}; {remedy}") from e
    except Exception as e:  # network, Hub and format errors have no common base class
        raise DataError(f"{hub_id} cannot be read from the Hub ({type(e).__name__}); {remedy}") from e
    for i, row in enumerate(rows):
        row.source = f"{hub_id}, {split} row {i}"
        if references:
            row[str(pictures)] = references[i]
    return rows


def _pictures_of(found: Any, column: Any) -> list[PictureInTable]:
    """References into the cached files of a Hub data set, whose rows are theirs one after the other."""
    references: list[PictureInTable] = []
    for file in (entry["filename"] for entry in found.cache_files):
        references += [PictureInTable(file, row, column) for row in range(read_arrow(file).num_rows)]
    if len(references) != len(found):
        raise ValueError(f"{len(references)} rows in its cached files, {len(found)} in all")
    return references
