"""What a study found: study.json, and the report.json of each of its runs. Nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformer2.errors import DataError

FILE = "study.json"
State = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        name: Its name in the study file and the values of its matrix: `svf-math`.
        seed: Its seed.
        labels: Values of the matrix by name: `{"skill": "math"}`.
        folder: The run folder, relative to the folder of study.json.
        state: Whether it has a report, was tried in vain, or is still to be run.
        report: Its report.json as plain data; None unless `done`.
    """

    name: str
    seed: int
    labels: Mapping[str, str]
    folder: str
    state: State
    report: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Tuning:
    """How a setting of a run was chosen: by the best validation accuracy of runs under a seed of their own.

    Attributes:
        name: The run, as in `Run.name`.
        seed: The seed of all of its values.
        values: Each with `set` (the flags tried), `validation` (best accuracy; None: failed or missing), `folder`.
        chosen: Position in `values`; None as long as one is missing.
    """

    name: str
    seed: int
    values: Sequence[Mapping[str, Any]]
    chosen: int | None


@dataclass(frozen=True)
class Group:
    """A run of the study file, with values of its matrix, under every seed.

    Attributes:
        name: As in `Run.name`.
        runs: One a seed.
    """

    name: str
    runs: Sequence[Run]

    @property
    def labels(self) -> Mapping[str, str]:
        """The matrix' values."""
        return self.runs[0].labels

    @property
    def stem(self) -> str:
        """The name without the matrix' values, which end it."""
        return self.name.removesuffix("".join(f"-{value}" for value in self.labels.values()))

    @property
    def reports(self) -> dict[int, Mapping[str, Any]]:
        """Seed -> report of the runs that are done."""
        return {run.seed: run.report for run in self.runs if run.report is not None}


@dataclass(frozen=True)
class Study:
    """A study and its runs.

    Attributes:
        name: Name of the study file.
        title: What it is about.
        paper: Where the paper has it: `Table 4`.
        base: The base model.
        build: Name of the builder of its tables and figures.
        seeds: Those of every run.
        runs: All of them, in the order of the study file.
        tuning: How their settings were chosen.
        command: The command line that made it.
        note: What has to be known of its runs to read it.
    """

    name: str
    title: str
    paper: str
    base: str
    build: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    tuning: tuple[Tuning, ...] = ()
    command: str = ""
    note: str = ""

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The runs by name, in order."""
        names = dict.fromkeys(run.name for run in self.runs)
        return {name: Group(name, [run for run in self.runs if run.name == name]) for name in names}

    @property
    def scored(self) -> list[Group]:
        """Those with one result a run, or without a report: neither `adapt` of all strategies nor `spectrum`."""
        return [g for g in self.groups.values() if all("result" in report for report in g.reports.values())]


def study_json(study: Study) -> str:
    """The content of study.json: everything but the reports, which stay where their runs are."""
    plain = asdict(replace(study, runs=tuple(replace(run, report=None) for run in study.runs)))
    for run in plain["runs"]:
        del run["report"]
    return json.dumps(plain, indent=1) + "\n"


def read_study(folder: Path) -> Study:
    """A study and the reports of its runs.

    Raises:
        DataError: study.json or a report cannot be read.
    """
    file = folder / FILE
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        runs = tuple(Run(**run, report=_report(folder / run["folder"], run["state"])) for run in plain.pop("runs"))
        tuning = tuple(Tuning(**tuned) for tuned in plain.pop("tuning"))
        return Study(**{**plain, "seeds": tuple(plain["seeds"])}, runs=runs, tuning=tuning)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file} cannot be used ({type(e).__name__}: {e}); run `transformer2 study` again") from e


def _report(folder: Path, state: State) -> Mapping[str, Any] | None:
    if state != "done":
        return None
    content: Mapping[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content
