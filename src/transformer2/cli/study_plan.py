"""A study file with a base and seeds, as command lines: which are known, which settings are chosen, what came out."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from transformer2.cli.check import STRATEGIES, sections
from transformer2.cli.compose import merge
from transformer2.cli.study_run import check_base, checked, composed, folder_name
from transformer2.errors import ConfigError, UserError, shown
from transformer2.files import write_text
from transformer2.study.builders import build
from transformer2.study.grid import Cell, as_flag, cells, with_folders
from transformer2.study.output import Table, write_outputs
from transformer2.study.results import FILE, Run, State, Study, Tuning, read_study, study_json
from transformer2.study.schedule import Job, dependants
from transformer2.svf.base_folder import NAMES

WORLDS = {base: "conf/paper/world/tiny.yaml" for base in ("tiny", "tiny_b")} | {
    "smollm2": "conf/paper/world/smollm2.yaml"
}
REAL_WORLD = "conf/paper/world/real.yaml"
STUDY_KEYS = ("title", "paper", "build", "seeds", "tuning_seed", "base", "other_base", "common", "runs", "note")


class Plan:
    """A study file with a base and seeds: its runs as command lines.

    Args:
        file: The study file.
        root: Folder of studies and runs.
        options: `base`, `other_base`, `world`, `seeds`, as given on the command line.
        overrides: Dotted keys on top of every run, and their text.

    Raises:
        ConfigError: Anything that a run of the study would be refused for, before the first one is started.
    """

    def __init__(
        self, file: str, root: Path, options: Mapping[str, str], overrides: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.name, self.root, self.overrides = Path(file).stem, root, list(overrides)
        own = merge([file])
        if "runs" not in own or "build" not in own:
            raise ConfigError(f"{file} is no study file: it needs `runs` and `build`; see conf/paper/table1.yaml")
        base = options.get("base") or own.get("base") or "tiny"
        world = options.get("world") or WORLDS.get(str(base), REAL_WORLD)
        for key in own:
            if key not in STUDY_KEYS and (near := get_close_matches(str(key), STUDY_KEYS, n=1, cutoff=0.8)):
                raise ConfigError(f"{file} has a key {shown(str(key))}; did you mean {near[0]}?")
        self.study: DictConfig = merge([world, file])
        self.study["base"] = base
        if "other_base" in options:
            self.study["other_base"] = options["other_base"]
        self.seeds = (
            _seeds("--seeds", options["seeds"]) if "seeds" in options else _listed(self.study.get("seeds", [0]))
        )
        given = [(key, options[key]) for key in ("base", "other_base", "world", "seeds") if key in options]
        words = [word for key, text in [*given, *self.overrides] for word in (f"--{key}", _portable(text))]
        self.command = shlex.join(["transformer2", "study", _portable(file), *words])
        (self.tuning_seed,) = _listed([self.study.get("tuning_seed", 100)], "tuning_seed")
        self.cells = {cell.name: cell for cell in cells(self.study)}
        self._jobs: dict[tuple[Any, ...], Job] = {}
        for cell in self.cells.values():
            self._check(cell)

    @cached_property
    def folder(self) -> Path:
        """Where study.json, tables and figures are: one folder for each base."""
        base = str(self.study["base"])
        if base in NAMES:
            return self.root / (self.name if base == "tiny" else f"{self.name}-{base}")
        digest = hashlib.sha256(base.encode()).hexdigest()[:6]  # many folders have the same last name
        return self.root / f"{self.name}-{Path(base).name.removesuffix('.gguf')}-{digest}"

    def jobs(self, failed: set[Path]) -> tuple[list[Job], set[str]]:
        """The runs that are known, those that settings are chosen by first, and what tells apart those that are not."""
        known: list[Job] = []
        waiting: set[str] = set()
        for cell in self.cells.values():
            known += self._tuning(cell, failed)
        for cell in self.cells.values():
            for seed in cell.seeds or self.seeds:
                job = self._final(cell, seed, failed)
                if job is None:
                    waiting.add(f"{[cell.command, cell.configs, cell.flags, cell.tune, cell.expert, seed]}")
                else:
                    known.append(job)
        return known, waiting

    def lines(self, launcher: Sequence[str]) -> list[str]:
        """What a run of the study would do."""
        known, waiting = self.jobs(set())
        unique = {job.folder: job for job in known}
        done = {folder for folder, job in unique.items() if job.done}
        again = len(done & dependants(unique.values(), unique.keys() - done))
        start = "transformer2" if list(launcher[1:]) == ["-m", "transformer2"] else shlex.join(launcher)
        lines = [f"{self.name}: {self.study.get('title', self.name)} (base {self.study.base})"]
        for folder, job in unique.items():
            words = shlex.join([*job.args, "--run_dir", str(folder)])
            lines.append(f"  {'done  ' if job.done else 'to run'} {job.name:<28} {start} {words}")
        later = f", {len(waiting)} more once their settings are chosen" if waiting else ""
        of_these = f" ({again} of them made from others; made again where those change)" if again else ""
        return [*lines, f"  {len(unique)} runs, {len(done)} done{of_these}{later}"]

    def check_bases(self) -> None:
        """Refuse a base that is not there, once and before its runs do, one after the other.

        Raises:
            UserError: It is no folder, and the Hub does not give it.
        """
        for job in self.jobs(set())[0]:
            model = composed(job.args).get("model") or {}
            if "base" in model and not job.done:
                check_base(str(model["base"]), json.dumps(model.get("model_kwargs") or {}))

    def finish(self, failed: set[Path]) -> bool:
        """Write study.json, and build what the study is for; whether every run is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = [
            self._run(cell, seed, self._final(cell, seed, failed), failed)
            for cell in self.cells.values()
            for seed in cell.seeds or self.seeds
        ]
        tuning = tuple(self._tuned(cell, failed) for cell in self.cells.values() if cell.tune)
        s = self.study
        where = str(s.get("paper", ""))
        found = Study(
            self.name,
            str(s.get("title", self.name)),
            where,
            str(s.base),
            str(s.build),
            self.seeds,
            tuple(runs),
            tuning,
            self.command,
            str(s.get("note", "")),
        )
        write_text(self.folder / FILE, study_json(found))
        done = sum(run.state == "done" for run in runs)
        print(f"{self.name}: {done} of {len(runs)} runs done")
        whole = read_study(self.folder)
        for line in [*_doubts(whole), *self._untraceable(failed), *self._given_to_none()]:
            print(f"  {line}")
        for tuned in tuning:
            if tuned.chosen is None:
                print(f"  {tuned.name} was not run: none of its tuning runs ended with a validation score")
        outputs = build(whole)
        for output in outputs:
            if isinstance(output, Table) and not output.name.endswith("_tuning"):
                print(output.text())
        print("\n".join(f"  {path}" for path in write_outputs(outputs, self.folder) if path.suffix != ".csv"))
        return done == len(runs)

    def _untraceable(self, failed: set[Path]) -> list[str]:
        """What speaks against runs whose experts cannot be told from those that are there now."""
        count = sum(job.done and not job.traceable for job in self.jobs(failed)[0])
        what = "reports that do not say which experts they are of, as an earlier transformer2 wrote them"
        return [f"{what}: {count}; remove the runs whose experts were trained anew since"] if count else []

    def _given_to_none(self) -> list[str]:
        """Flags that were given on top of every run and that no run takes."""
        taken = {key for cell in self.cells.values() for key, _ in self._overrides(cell)}
        return [f"no run of it takes --{key}" for key, _ in self.overrides if key not in taken]

    # ------------------------------------------------------------------ one run

    def _final(self, cell: Cell, seed: int, failed: set[Path]) -> Job | None:
        """A run with its chosen settings; None as long as they are not chosen."""
        chosen: dict[str, Any] = {}
        if cell.tune:
            position = self._choice(cell, failed)
            if position is None:
                return None
            ((key, values),) = cell.tune.items()
            chosen = {key: values[position]}
        return self._job(cell, seed, chosen, failed)

    def _tuning(self, cell: Cell, failed: set[Path]) -> list[Job]:
        jobs = [
            self._job(cell, self.tuning_seed, {key: value}, failed)
            for key, values in cell.tune.items()
            for value in values
        ]
        return [job for job in jobs if job is not None]

    def _choice(self, cell: Cell, failed: set[Path]) -> int | None:
        """Position of the value with the best validation accuracy; the first of equals."""
        jobs = self._tuning(cell, failed)
        if len(jobs) < len(*cell.tune.values()) or not all(job.done or job.folder in failed for job in jobs):
            return None
        scores = [_validation(job.folder) if job.done else None for job in jobs]
        scored = [(score, -i) for i, score in enumerate(scores) if score is not None]
        return -max(scored)[1] if scored else None

    def _job(self, cell: Cell, seed: int, chosen: Mapping[str, Any], failed: set[Path]) -> Job | None:
        needed: dict[str, Job] = {}
        for name in cell.needs():
            other = self.cells[name]
            job = self._final(other, seed, failed)
            if job is None:
                return None
            needed[name] = job
        key = cell.name, seed, json.dumps(chosen), tuple(job.folder for job in needed.values())
        if key not in self._jobs:
            args = self._args(cell, seed, chosen, {name: str(job.folder) for name, job in needed.items()})
            same = self._args(cell, seed, chosen, {name: job.folder.name for name, job in needed.items()})
            folder = self.root / "runs" / folder_name(seed, same)
            tried = "".join(f" {k.rpartition('.')[2]}={as_flag(v)}" for k, v in chosen.items())
            label = f"{cell.name} s{seed}{tried if seed == self.tuning_seed else ''}"
            needs = tuple(job.folder for job in needed.values())
            adapt = composed(args).get("adapt") or {}
            experts = [*(adapt.get("experts") or []), adapt.get("classifier"), dict(pairwise(args)).get("--expert")]
            paths = tuple(Path(path).expanduser() for path in experts if path)
            self._jobs[key] = Job(label, args, folder, needs, paths, partial(folder_name, seed, same, anew=True))
        return self._jobs[key]

    def _args(self, cell: Cell, seed: int, chosen: Mapping[str, Any], folders: Mapping[str, str]) -> tuple[str, ...]:
        words = [cell.command]
        for config in cell.configs:
            words += ["--config", config]
        for key, value in {**cell.flags, **chosen}.items():
            words += [f"--{key}", as_flag(with_folders(value, folders))]
        for key, text in self._overrides(cell):
            words += [f"--{key}", text]
        if cell.expert is not None:
            words += ["--expert", with_folders(cell.expert, folders)]
        return (*words, "--seed_everything", str(seed))

    def _overrides(self, cell: Cell) -> list[tuple[str, str]]:
        """Those that the cell's command takes, and those that none does, for it to refuse."""
        strategy = str(cell.flags.get("strategy", "cem"))
        own = sections(True, [strategy] if strategy in STRATEGIES else [*STRATEGIES])
        own, other = (own, sections(False)) if cell.command == "adapt" else (sections(False), sections(True))
        adapts = sections(True, [*STRATEGIES])  # a key of another strategy is for another run

        def known(key: str, where: Mapping[str, Mapping[str, Any]]) -> bool:
            section, _, rest = key.partition(".")
            return rest.partition(".")[0] in where.get(section, {})

        elsewhere = [key for key, _ in self.overrides if known(key, other) or known(key, adapts)]
        return [(key, text) for key, text in self.overrides if known(key, own) or key not in elsewhere]

    def _check(self, cell: Cell) -> None:
        """Refuse, before anything is run, what a run would be refused for."""
        if cell.command == "fit" and not cell.configs:
            raise ConfigError(f"{self.name}, runs.{cell.name}: a fit needs `config`, a list of config files")
        for tuned in cell.tune:
            if twice := next((key for key, _ in self.overrides if tuned == key or tuned.startswith(f"{key}.")), None):
                raise ConfigError(
                    f"--{twice}: runs.{cell.name} chooses {tuned} by itself; leave the flag out, or `tune`"
                )
        for name in cell.needs():
            theirs = self.cells[name].seeds or self.seeds
            if lacking := [seed for seed in cell.seeds or self.seeds if seed not in theirs]:
                raise ConfigError(
                    f"{self.name}, runs.{cell.name} needs @{name} under seed {lacking[0]}, which has seeds "
                    f"{', '.join(map(str, theirs))} alone; give both the same"
                )
        tried = [{key: value} for key, values in cell.tune.items() for value in values] or [{}]
        for chosen in tried:
            args = self._args(cell, self.tuning_seed, chosen, {name: f"runs/{name}" for name in cell.needs()})
            try:
                composed(args)
                if cell.expert is None:  # else its own config says the rest
                    checked(args)
            except UserError as e:
                raise ConfigError(f"{self.name}, runs.{cell.name}: {e}") from e

    # ------------------------------------------------------------------ study.json

    def _run(self, cell: Cell, seed: int, job: Job | None, failed: set[Path]) -> Run:
        if job is None:
            return Run(cell.name, seed, cell.labels, "", "missing")
        state: State = "failed" if job.folder in failed else "done" if job.done else "missing"
        return Run(cell.name, seed, cell.labels, f"../runs/{job.folder.name}", state)

    def _tuned(self, cell: Cell, failed: set[Path]) -> Tuning:
        jobs = self._tuning(cell, failed)
        ((key, values),) = cell.tune.items()
        tried = [
            {
                "set": {key: value},
                "validation": _validation(job.folder) if job.done else None,
                "folder": f"../runs/{job.folder.name}",
            }
            for value, job in zip(values, jobs, strict=False)
        ]
        return Tuning(cell.name, self.tuning_seed, tried, self._choice(cell, failed))


def _doubts(study: Study) -> list[str]:
    """What speaks against comparing its runs: several versions of a library, or several numbers of questions."""
    made: dict[str, set[str]] = {}
    asked: dict[str, set[int]] = {}
    for run in study.runs:
        for library, version in ((run.report or {}).get("versions") or {}).items():
            made.setdefault(library, set()).add(version)
        if n := (run.report or {}).get("n"):
            asked.setdefault(run.name, set()).add(n)
    numbers = {name: " and ".join(map(str, sorted(several))) for name, several in asked.items() if len(several) > 1}
    return [f"its runs of {name} are of {several} questions" for name, several in numbers.items()] + [
        f"its runs were made with {library} {' and '.join(sorted(versions))}; remove the older ones"
        for library, versions in made.items()
        if len(versions) > 1
    ]


def _validation(folder: Path) -> float | None:
    """The best validation accuracy of a finished fit."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    score: float | None = report.get("details", {}).get("training", {}).get("best_validation")
    return score


def _portable(path: str) -> str:
    """A word of the command line without the folders of this machine."""
    return Path(path).name if Path(path).is_absolute() else path


def _seeds(name: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(part.isdecimal() and int(part) < 2**32 for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"{name} must be different whole numbers, such as 0,1,2, not {shown(text)}")
    return tuple(map(int, parts))


def _listed(seeds: Any, name: str = "seeds") -> tuple[int, ...]:
    if not isinstance(seeds, list | ListConfig):
        raise ConfigError(f"{name} must be a list of whole numbers, such as [0, 1, 2], not {shown(repr(seeds), 60)}")
    return _seeds(name, ",".join(map(str, seeds)))
