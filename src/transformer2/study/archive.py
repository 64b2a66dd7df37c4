"""Studies as they are kept in docs/results: study.json, the report.json of each run, and nothing of the machine."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformer2.errors import DataError, shown
from transformer2.files import inside, write_text
from transformer2.study.results import FILE, Study, read_study, study_json

RUNS = "runs"
# Of a machine, not of a result: /home/somebody/models, C:\models. Not a/b, /v1 or https://host/a/b.
_MACHINE = re.compile(r"(?<![\w.:/~-])(?:/[\w.+-]+){2,}|\b[A-Za-z]:\\")


def read_studies(results: Path) -> dict[str, Study]:
    """Folder name -> study, in the order of the paper; tables first, the embedded model first.

    Raises:
        DataError: One cannot be read.
    """
    found = {file.parent.name: read_study(file.parent) for file in sorted(results.glob(f"*/{FILE}"))}

    def place(item: tuple[str, Study]) -> tuple[Any, ...]:
        number = re.search(r"\d+", item[1].paper)
        return "table" not in item[1].paper.lower(), int(number[0]) if number else 999, item[1].base != "tiny", item[0]

    return dict(sorted(found.items(), key=place))


def copy_results(root: Path, results: Path) -> None:
    """Copy studies, and the report.json of their runs and of their tuning; nothing else, and no path of this machine.

    Args:
        root: Folder of studies, such as runs/studies.
        results: Where they go; reports there that no study names any more are removed.

    Raises:
        DataError: There is none, one cannot be read, or names a run outside of `root`, or a path of this machine.
    """
    studies = read_studies(root)
    if not studies:
        raise DataError(f"{root} holds no study; run `transformer2 study conf/paper/table1.yaml` first")
    copies: dict[Path, str] = {}  # all are read before any is written
    called = Counter(portable(base) for base in {study.base for study in studies.values()})
    for name, study in studies.items():
        base = portable(study.base)  # of two bases with one name, the study's folder tells which
        base = name.removeprefix(f"{study.name}-") if called[base] > 1 else base
        tried = [value for tuned in study.tuning for value in tuned.values]
        folders = [run.folder for run in study.runs if run.state == "done"]
        folders += [value["folder"] for value in tried if value.get("validation") is not None and value.get("folder")]
        for folder in dict.fromkeys(folders):
            run = inside(root, posixpath.join(name, folder))
            if run is None:
                raise DataError(f"{root / name / FILE} names a run outside of {root}: {shown(folder)}")
            copies[results / RUNS / run.name / "report.json"] = _checked(run / "report.json", study.base)
        copies[results / name / FILE] = study_json(_moved(study, base))
        _check_no_paths(json.loads(copies[results / name / FILE]), root / name / FILE)
    for file, text in copies.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    _prune(results)


def _moved(study: Study, base: str) -> Study:
    """With the folders of its runs where they go, and its base as it is called there."""

    def run_of(folder: str) -> str:
        return f"../{RUNS}/{posixpath.basename(folder)}" if folder else ""

    runs = tuple(replace(run, folder=run_of(run.folder)) for run in study.runs)
    tuning = tuple(
        replace(tuned, values=[{**value, "folder": run_of(value.get("folder") or "")} for value in tuned.values])
        for tuned in study.tuning
    )
    return replace(study, base=base, runs=runs, tuning=tuning)


def portable(path: str) -> str:
    """A path or name without the folders of this machine."""
    return Path(path).name if Path(path).is_absolute() else path


def _checked(report: Path, base: str) -> str:
    """A report as text, where it names no path of this machine but the base's, which is shortened to its name."""
    try:
        text = report.read_text(encoding="utf-8").replace(json.dumps(base)[1:-1], portable(base))
        content = json.loads(text)
    except (OSError, ValueError) as e:
        raise DataError(f"{report} cannot be read ({type(e).__name__}); run `transformer2 study` again") from e
    _check_no_paths(content, report)
    return text


def _check_no_paths(content: Any, file: Path) -> None:
    for value in _strings(content):
        if found := _MACHINE.search(value):
            raise DataError(
                f"{file} names a path of this machine ({shown(found[0], 80)}), which is not copied into docs; "
                "give the command relative paths or names"
            )


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [text for key, item in items for text in [*_strings(key), *_strings(item)]]


def _prune(results: Path) -> None:
    """Remove reports of runs that no study names."""
    named = set()
    for study in read_studies(results).values():
        named |= {posixpath.basename(run.folder) for run in study.runs}
        named |= {posixpath.basename(v.get("folder") or "") for tuned in study.tuning for v in tuned.values}
    for report in (results / RUNS).glob("*/report.json"):
        if report.parent.name not in named:
            report.unlink()
            if not any(report.parent.iterdir()):
                report.parent.rmdir()
