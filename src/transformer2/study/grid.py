"""The runs of a study file: a cell for each value of a run's matrix, as command lines.

Everything in a study is an ordinary command line, which can be typed by hand; the grid only writes them.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from transformer2.errors import ConfigError, nearest, one_line, shown
from transformer2.study.builders import check_rows

COMMANDS = ("fit", "test", "adapt", "spectrum")
RUN_KEYS = ("command", "matrix", "config", "set", "tune", "expert", "seeds")
A_LIST, A_MAPPING = (list, "a list"), (dict, "a mapping")
KINDS = {"config": A_LIST, "set": A_MAPPING, "tune": A_MAPPING, "expert": (str, "text"), "seeds": A_LIST}
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.]*", re.ASCII)
REFERENCE = re.compile(r"@([\w.-]+)(/.*)?", re.ASCII)


@dataclass(frozen=True)
class Cell:
    """One run of a study under every seed.

    Attributes:
        name: The run's name and the values of its matrix: `svf-math`.
        labels: Values of the matrix by name.
        command: `fit`, `test`, `adapt` or `spectrum`.
        configs: Values of `--config`.
        flags: Dotted keys and their values, later ones on top. A text `@NAME/expert` names the folder of another run.
        tune: Dotted key -> the values to choose from on validation; at most one key.
        expert: `--expert`, mostly `@NAME/expert`.
        seeds: Seeds of its own; empty: the study's.
        own: Those of `flags` that are in its `set`, not only in what is `common`.
    """

    name: str
    labels: Mapping[str, str]
    command: str
    configs: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    expert: str | None = None
    seeds: tuple[int, ...] = ()
    own: tuple[str, ...] = ()

    @property
    def tried(self) -> list[dict[str, Any]]:
        """The values to choose from, as flags."""
        return [{key: value} for key, values in self.tune.items() for value in values]

    def needs(self) -> list[str]:
        """Names of the runs whose folders it uses."""
        asked = defaultdict[str, str](str)
        with_folders([self.flags, self.expert], asked)
        return sorted(asked)


def cells(study: DictConfig) -> list[Cell]:
    """The cells of a composed study file, in its order.

    Raises:
        ConfigError: A key, a reference or an interpolation that stands for nothing; runs that `build` has no row for.
    """
    runs = study.get("runs")
    if not isinstance(runs, DictConfig) or not runs:
        raise ConfigError("the study has no runs; name at least one below `runs`")
    common = study.get("common") or {}
    for key, flags in common.items() if isinstance(common, Mapping) else [(common, common)]:
        if key not in COMMANDS or not isinstance(flags, Mapping | None):
            raise ConfigError(f"common.{shown(key)} must be flags of one of {', '.join(COMMANDS)}: {{KEY: VALUE}}")
    found: list[Cell] = []
    for name in runs:
        seen: dict[str, Cell] = {}
        for cell in _cells_of(study, name):
            # A target says how a run is read, not what it is.
            given = repr(replace(cell, name="", labels={"target": cell.labels.get("target", "")}))
            other = seen.setdefault(given, cell)
            apart = [f"${{{label}}}" for label, value in cell.labels.items() if other.labels[label] != value]
            if apart and not any(label in OmegaConf.to_yaml(runs[name]) for label in apart):
                raise ConfigError(
                    f"runs.{other.name} and runs.{cell.name} are one and the same run; say what {apart[0]} is for, "
                    f"such as set: {{KEY: {apart[0]}}}"
                )
            found.append(cell)
    names = Counter(cell.name for cell in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"two runs of the study are called {twice[0]}; rename one")
    for cell in found:
        for needed in cell.needs():
            if needed not in names:
                raise ConfigError(
                    f"runs.{cell.name} needs @{needed}, which is no run of the study{nearest(needed, names)}"
                )
    try:
        TopologicalSorter({cell.name: cell.needs() for cell in found}).prepare()
    except CycleError as e:
        raise ConfigError(f"runs of the study need each other in a cycle: {' -> '.join(e.args[1])}; break it") from e
    if "build" in study:
        check_rows(str(study.build), found)
    return found


def _cells_of(study: DictConfig, name: Any) -> Iterator[Cell]:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ConfigError(f"runs.{shown(name)}: a run's name is text of letters, digits, _ and .; quote or rename it")
    if not isinstance(study.runs[name], DictConfig):
        raise ConfigError(f"runs.{name} must hold keys and values, such as `command: fit`")
    matrix = _resolved(study, name, {"matrix": study.runs[name].get("matrix") or {}}, {})["matrix"]
    if not all(isinstance(values, list) and values for values in matrix.values()):
        raise ConfigError(
            f"runs.{name}.matrix must give a list of values for each name, such as {{skill: [math, code]}}"
        )
    for values in itertools.product(*matrix.values()):
        chosen = dict(zip(matrix, values, strict=True))
        labels = {str(key): str(value) for key, value in chosen.items()}
        run = _resolved(study, name, study.runs[name], chosen)
        for key in run:
            if key not in RUN_KEYS:
                raise ConfigError(f"unknown key runs.{name}.{shown(str(key))}{nearest(str(key), RUN_KEYS)}")
        command = run.get("command")
        if command not in COMMANDS:
            raise ConfigError(f"runs.{name}.command must be one of {', '.join(COMMANDS)}, not {shown(repr(command))}")
        for key, (kind, words) in KINDS.items():
            if not isinstance(run.setdefault(key, kind()), kind):
                raise ConfigError(f"runs.{name}.{key} must be {words}, not {shown(repr(run[key]), 60)}")
        common = (study.get("common") or {}).get(command) or {}
        flags = {**_resolved(study, name, common, chosen), **run["set"]}
        seeds, tune = run["seeds"], run["tune"]
        if "seed_everything" in {**flags, **tune}:
            raise ConfigError(f"runs.{name} sets seed_everything, but seeds are the study's; give runs.{name}.seeds")
        if len(set(seeds)) < len(seeds) or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
            raise ConfigError(f"runs.{name}.seeds must be different whole numbers, not {shown(repr(seeds), 60)}")
        if len(tune) > 1 or not all(isinstance(v, list) and v for v in tune.values()) or (tune and command != "fit"):
            raise ConfigError(f"runs.{name}.tune takes one key of a fit and a list of values")
        if not all(isinstance(config, str) for config in run["config"]):
            raise ConfigError(f"runs.{name}.config must name config files, not {shown(repr(run['config']), 60)}")
        if command == "adapt" and run["expert"]:
            raise ConfigError(f"runs.{name}.expert: an adapt takes several; write set: {{adapt.experts: [...]}}")
        yield Cell(
            "-".join([name, *labels.values()]),
            labels,
            command,
            tuple(run["config"]),
            flags,
            tune,
            run["expert"] or None,
            tuple(seeds),
            tuple(run["set"]),
        )


def _resolved(study: DictConfig, name: str, part: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a run with its interpolations, which see the whole study and the matrix' values."""
    try:
        whole = OmegaConf.merge(study, chosen, {"_run": part})
        plain: Any = OmegaConf.to_container(whole._run, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        raise ConfigError(f"runs.{name} cannot be resolved: {one_line(e)}") from e
    return dict(plain)


def with_folders(value: Any, folders: Mapping[str, str]) -> Any:
    """A value with the folder in place of each `@NAME`.

    Args:
        value: Of `Cell.flags`, or `Cell.expert`.
        folders: Folder of each run that the cell needs.
    """
    if isinstance(value, str):
        found = REFERENCE.fullmatch(value)
        return value if found is None else folders[found[1]] + (found[2] or "")
    if isinstance(value, Mapping):
        return {key: with_folders(inner, folders) for key, inner in value.items()}
    return [with_folders(inner, folders) for inner in value] if isinstance(value, list | tuple) else value


def as_flag(value: Any) -> str:
    """A value as one word of a command line, which reads back as the same value."""
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(value, str) and yaml.safe_load(f"- {value}") == [value]:
            return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False).strip().removesuffix("\n...")
