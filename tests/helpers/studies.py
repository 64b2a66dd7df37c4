"""Study folders made by hand: reports with numbers that a test can check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer2.study.output import Table, without_links
from transformer2.study.results import FILE, Run, State, Study, Tuning, read_study, study_json


def score(accuracy: float, n: int = 100) -> dict[str, Any]:
    return {"accuracy": accuracy, "se": (accuracy * (1 - accuracy) / n) ** 0.5, "n": n}


def report(result: float, base: float = 0.4, task: str = "tiny_math", n: int = 100, **more: Any) -> dict[str, Any]:
    """A report.json as `fit`, `test` and `adapt` write it."""
    found = {"task": task, "protocol": "clean", "n": n, "base": score(base, n), "result": score(result, n)}
    rest = {"paired_p": 0.01, "controls": {}, "evaluations": None, "seconds": {}, "seeds": [0], "details": {}}
    return {**found, **rest, **more}


def fitted(
    result: float, base: float = 0.4, trainable: int = 1000, last: float | None = None, **more: Any
) -> dict[str, Any]:
    """Of a `fit`, whose validation accuracy was best at step 10 and ended at `last`."""
    ends = [(0, base), (10, result), (20, result if last is None else last)]
    curve = [{"step": s, "accuracy": a, "se": 0.05, "seconds": float(s), "cpu_seconds": float(s)} for s, a in ends]
    training = {"method": "SVF", "trainable": trainable, "steps": 20, "seconds": 20.0, "cpu_seconds": 20.0}
    best = {"best_step": 10, "best_validation": result}
    return report(result, base, details={"training": {**training, "curve": curve, **best}}, **more)


def adapted(task: str, results: Mapping[str, float], base: float = 0.4, **controls: float) -> dict[str, Any]:
    """Of `adapt --strategy all`."""
    shared = {name.replace("_", " "): score(value) for name, value in controls.items()}
    seconds = {"first_pass": 3.0, "second_pass": 1.0, "controls": 1.0}
    more = {"task": task, "controls": shared, "seconds": seconds}
    return {
        "strategies": {
            name: report(value, base, **more, evaluations=128 if name == "cem" else None, details={"strategy": name})
            for name, value in results.items()
        }
    }


def make_study(
    root: Path,
    build: str,
    reports: Mapping[str, Sequence[Mapping[str, Any] | str]],
    labels: Mapping[str, Mapping[str, str]],
    tuning: Sequence[Tuning] = (),
    name: str | None = None,
    base: str = "tiny",
) -> Study:
    """A study below `root`, written and read again.

    Args:
        root: Of all studies.
        build: Its builder.
        reports: Run name -> for each seed a report, `failed` or `missing`.
        labels: Run name -> its matrix.
        tuning: How settings were chosen.
        name: Of the study; None takes the builder's.
        base: The base model.
    """
    runs = []
    for run, of_seeds in reports.items():
        for seed, content in enumerate(of_seeds):
            state: State = content if content in ("failed", "missing") else "done"
            folder = root / f"{run}-s{seed}-abc"
            runs.append(Run(run, seed, labels.get(run, {}), f"../{folder.name}", state))
            if state == "done":
                folder.mkdir(parents=True)
                (folder / "report.json").write_text(json.dumps(content))
                (folder / "records.jsonl").write_text("{}\n")
    seeds = tuple(range(max(map(len, reports.values()))))
    command = f"transformer2 study conf/paper/{name or build}.yaml"
    study = Study(name or build, f"Study {build}", "Table", base, build, seeds, tuple(runs), tuple(tuning), command)
    folder = root / study.name
    folder.mkdir(parents=True)
    (folder / FILE).write_text(study_json(study))
    return read_study(folder)


def table_rows(table: Table) -> list[dict[str, str]]:
    """Column -> cell of every row, links as their text."""
    assert all(len(row) == len(table.columns) for row in table.rows)
    return [dict(zip(table.columns, map(without_links, row), strict=True)) for row in table.rows]
