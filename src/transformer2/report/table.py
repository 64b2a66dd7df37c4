"""report.json and the table a run ends with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformer2.arguments import expected, fits, written
from transformer2.errors import DataError
from transformer2.files import write_text
from transformer2.report.figures import picture_sheet, save_figure
from transformer2.types import Record, Report, Score

MCNEMAR = "exact McNemar"  # unless a report says otherwise
PACKAGES = ("transformer2", "torch", "lightning", "transformers", "peft", "deepspeed")


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a result depends on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def text_table(report: Report) -> str:
    """Base and result with standard errors, as printed at the end of a run."""
    rows = [("base", report.base), *report.controls.items(), ("expert", report.result)]
    seeds = ", ".join(map(str, report.seeds))
    lines = [f"{report.task}   test split, n = {report.n}, protocol {report.protocol}, seed {seeds}"]
    width = max(12, *(len(name) for name, _ in rows))
    lines += [f"  {name:<{width}} {score!s:>16}" for name, score in rows]
    if report.n:
        gain, test = 100 * (report.result.accuracy - report.base.accuracy), report.details.get("paired_test", MCNEMAR)
        lines.append(f"  {'gain':<{width}} {gain:>+6.1f} points   p = {report.paired_p:.2g} ({test})")
    for who, scores in report.details.get("pass_at_k", {}).items() if report.n else ():
        shown = ", ".join(f"pass@{k} {Score(s['pass'], s['pass_se'], s['n'])}" for k, s in scores.items())
        lines.append(f"  {'expert' if who == 'result' else who:<{width}} {shown}")
    lines += [f"  {line}" for line in (*dispatch_lines(report), *report.details.get("notes", ()))]
    if report.seconds:
        lines.append("  " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items()))
    return "\n".join(lines)


def dispatch_lines(report: Report) -> list[str]:
    """The accuracies of a dispatch: with and without "other", and by category."""
    scores = report.details.get("dispatch", {}).items()
    return [f"dispatch, {name}: {Score(**score)} of {score['n']}" for name, score in scores]


def write_report(folder: Path, report: Report, records: Sequence[Record] = ()) -> None:
    """Write report.json and, if there are any, records.jsonl and a sheet of pictures; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    result = str(report.details.get("strategy", "expert"))
    if (sheet := picture_sheet(records, result)) is not None:
        save_figure(sheet, folder / "figures" / "pictures.png")
    if records:
        lines = (json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records)
        write_text(folder / "records.jsonl", "".join(lines))
    write_text(folder / "report.json", json.dumps(report.to_json(), indent=2) + "\n")


def read_report(folder: Path) -> Report:
    """The report.json of a run.

    Raises:
        DataError: It cannot be read.
    """
    file = folder / "report.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise DataError(f"{file} is not there", "run the command again") from e
    except (OSError, ValueError) as e:
        raise _damaged(file, e) from e
    return report_of(content, file)


def report_of(content: Mapping[str, Any], file: Path) -> Report:
    """The report in a file, or a strategy's among several.

    Raises:
        DataError: It is none.
    """
    try:
        scores = {key: _score(content[key]) for key in ("base", "result")}
        controls = {name: _score(score) for name, score in content["controls"].items()}
        _check(content, task=str, protocol=str, n=int, seeds=list[int], seconds=dict, details=dict)
        return Report(**{**content, **scores, "controls": controls, "seeds": tuple(content["seeds"])})
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise _damaged(file, e) from e


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is damaged ({type(error).__name__}: {error})", "run the command again")


def _score(plain: Mapping[str, Any]) -> Score:
    """A score; of nothing it has a number alone."""
    number = float if plain["n"] else float | None
    _check(plain, accuracy=number, se=number, n=int)
    return Score(**plain)


def _check(plain: Mapping[str, Any], **hints: Any) -> None:
    for key, hint in hints.items():
        if not fits(hint, plain[key]):
            raise TypeError(f"{key} is {written(plain[key])}, not {expected(hint)}")
