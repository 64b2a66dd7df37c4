"""A study file with a base and seeds, as runs: which are known, which settings are chosen, and what became of each."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from transformer2.adaptation import STRATEGIES
from transformer2.cli.compose import merge
from transformer2.cli.keys import TRAINER_DEFAULTS, UNREAD, sections
from transformer2.cli.optimizers import HOMES
from transformer2.cli.study_run import checked, composed, folder_name
from transformer2.errors import ConfigError, UserError, shown
from transformer2.study.archive import portable
from transformer2.study.grid import Cell, as_flag, cells, with_folders
from transformer2.study.results import Run, State, Study, Tuning
from transformer2.study.schedule import Job
from transformer2.svf.base_folder import NAMES

WORLDS = {"tiny": "tiny", "tiny_b": "tiny", "smollm2": "smollm2"}  # those of other bases: real
BASES = {"base", "other_base"}
STUDY_KEYS = ("title", "paper", "build", "seeds", "tuning_seed", "base", "other_base", "common", "runs", "note")


class Plan:
    """A study file with a base and seeds: its runs as command lines.

    Args:
        file: The study file.
        root: Folder of studies and runs.
        failed: Folders of the runs that failed under this command; whoever runs them adds to it.
        options: `base`, `other_base`, `world`, `seeds`, as given on the command line.
        overrides: Dotted keys on top of every run, and their text.

    Raises:
        ConfigError: Anything that a run of the study would be refused for, before the first one is started.
    """

    def __init__(
        self,
        file: str,
        root: Path,
        failed: set[Path],
        options: Mapping[str, str],
        overrides: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.file, self.name, self.root, self.failed = file, Path(file).stem, root, failed
        self.overrides = list(overrides)
        own = merge([file])
        if "runs" not in own or "build" not in own:
            raise ConfigError(f"{file} is no study file: it needs `runs` and `build`; see conf/paper/table1.yaml")
        of_world = merge([options["world"]]).get("base") if "world" in options else None
        base = options.get("base") or own.get("base") or of_world or "tiny"
        world = options.get("world") or f"conf/paper/world/{WORLDS.get(str(base), 'real')}.yaml"
        for key in own:
            if key not in STUDY_KEYS and (near := get_close_matches(str(key), STUDY_KEYS, n=1, cutoff=0.8)):
                raise ConfigError(f"{file} has a key {shown(str(key))}; did you mean {near[0]}?")
        self.study: DictConfig = merge([world, file])
        self.study["base"] = base
        if "other_base" in options:
            self.study["other_base"] = options["other_base"]
        if "seeds" in options:
            self.seeds = _seeds("--seeds", options["seeds"].strip("[]").split(","))
        else:
            self.seeds = _seeds("seeds", self.study.get("seeds", [0]))
        (self.tuning_seed,) = _seeds("tuning_seed", [self.study.get("tuning_seed", 100)])
        given = [(key, options[key]) for key in ("base", "other_base", "world", "seeds") if key in options]
        words = [word for key, text in [*given, *self.overrides] for word in (f"--{key}", portable(text))]
        self.command = shlex.join(["transformer2", "study", portable(file), *words])
        found = cells(self.study)
        # A base that changes no run would stand over results that are not its own.
        other = {key: {key: f"{options[key]}, or another"} for key in BASES & {*options}}
        self.unused = {key for key in other if cells(DictConfig(OmegaConf.merge(self.study, other[key]))) == found}
        self.cells = {cell.name: replace(cell, seeds=() if "seeds" in options else cell.seeds) for cell in found}
        taken = {key for cell in self.cells.values() for key, _ in self._overrides(cell)}
        self.unused |= {key for key, _ in self.overrides} - taken
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

    def jobs(self) -> tuple[list[Job], set[str]]:
        """The runs that are known, those that settings are chosen by first, and what tells apart those that are not."""
        known = [job for cell in self.cells.values() for job in self._tuning(cell)]
        made = {job.folder: job for job in self._jobs.values()}
        for tuned in known:  # and what those are made from, under the seed that they are tuned with
            known += [made[folder] for folder in tuned.needs if made[folder] not in known]
        waiting: set[str] = set()
        for cell, seed, job in self._finals():
            if job is None:
                waiting.add(f"{[cell.command, cell.configs, cell.flags, cell.tune, cell.expert, seed]}")
            else:
                known.append(job)
        return known, waiting

    def found(self) -> Study:
        """The study as study.json has it: every run with its state, and how its settings were chosen."""
        runs = []
        for cell, seed, job in self._finals():
            state: State = "failed" if job and job.folder in self.failed else "done" if job and job.done else "missing"
            runs.append(Run(cell.name, seed, cell.labels, "" if job is None else f"../runs/{job.folder.name}", state))
        tuning = []
        for cell in self.cells.values():
            if cell.tune:
                tried = [
                    {"set": chosen, "validation": _validation(job), "folder": f"../runs/{job.folder.name}"}
                    for chosen, job in zip(cell.tried, self._tuning(cell), strict=False)
                ]
                tuning.append(Tuning(cell.name, self.tuning_seed, tried, self._choice(cell)))
        s = self.study
        return Study(
            name=self.name,
            title=str(s.get("title") or self.name),
            paper=str(s.get("paper") or ""),
            base=str(s.base),
            build=str(s.build),
            seeds=self.seeds,
            runs=tuple(runs),
            tuning=tuple(tuning),
            command=self.command,
            note=str(s.get("note") or ""),
        )

    # ------------------------------------------------------------------ one run

    def _finals(self) -> list[tuple[Cell, int, Job | None]]:
        return [(c, seed, self._final(c, seed)) for c in self.cells.values() for seed in c.seeds or self.seeds]

    def _final(self, cell: Cell, seed: int) -> Job | None:
        """A run with its chosen settings; None as long as they are not chosen."""
        if not cell.tune:
            return self._job(cell, seed, {})
        position = self._choice(cell)
        return None if position is None else self._job(cell, seed, cell.tried[position])

    def _tuning(self, cell: Cell) -> list[Job]:
        return [job for chosen in cell.tried if (job := self._job(cell, self.tuning_seed, chosen)) is not None]

    def _choice(self, cell: Cell) -> int | None:
        """Position of the value with the best validation accuracy; the first of equals."""
        jobs = self._tuning(cell)
        if len(jobs) < len(cell.tried) or not all(job.done or job.folder in self.failed for job in jobs):
            return None
        scored = [(score, -i) for i, job in enumerate(jobs) if (score := _validation(job)) is not None]
        return -max(scored)[1] if scored else None

    def _job(self, cell: Cell, seed: int, chosen: Mapping[str, Any]) -> Job | None:
        needed: dict[str, Job] = {}
        for name in cell.needs():
            job = self._final(self.cells[name], seed)
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
            # A run has a folder, not a name; and what a study says of every run may be for its fits alone.
            idle = re.compile(UNREAD.pattern + "|name" if cell.command == "adapt" else "name")
            read = [pair for pair in zip(args[1::2], args[2::2], strict=True) if not idle.fullmatch(pair[0][2:])]
            args = (args[0], *(word for pair in read for word in pair))
            self._jobs[key] = Job(label, args, folder, needs, paths, partial(folder_name, seed, same, reread=True))
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
        own = _keys(cell.command == "adapt", [strategy] if strategy in STRATEGIES else [*STRATEGIES])
        every = _keys(False) | _keys(True)  # a key of another command or strategy is for another run
        heads = {key: ".".join(key.split(".")[:2]) for key, _ in self.overrides}
        return [(key, text) for key, text in self.overrides if heads[key] in own or heads[key] not in every]

    def _check(self, cell: Cell) -> None:
        """Refuse, before anything is run, what a run would be refused for."""
        if cell.command == "fit" and not cell.configs:
            raise ConfigError(f"{self.name}, runs.{cell.name}: a fit needs `config`, a list of config files")
        for flag, _ in self._overrides(cell):
            key = flag.replace(".init_args", "")
            if _sets(key, ["model.base"]):
                raise ConfigError(f"--{flag}: the runs of a study have the study's base; write --base")
            if tuned := _sets(key, cell.tune):
                raise ConfigError(
                    f"--{flag}: runs.{cell.name} chooses {tuned} by itself; leave the flag out, or `tune`"
                )
            if label := _sets(key, ["data.task"]) and next((x for x in ("skill", "task") if x in cell.labels), ""):
                raise ConfigError(f"--{flag}: the label {label} says which task runs.{cell.name} is of; leave it out")
            if own := _sets(key, _leaves({name: cell.flags[name] for name in cell.own})):
                raise ConfigError(
                    f"--{flag}: runs.{cell.name} sets {own} by itself; leave the flag out, or edit the study file"
                )
        for name in cell.needs():
            theirs = self.cells[name].seeds or self.seeds
            if lacking := [seed for seed in cell.seeds or self.seeds if seed not in theirs]:
                raise ConfigError(
                    f"{self.name}, runs.{cell.name} needs @{name} under seed {lacking[0]}, which has seeds "
                    f"{', '.join(map(str, theirs))} alone; give both the same"
                )
        for chosen in cell.tried or [{}]:
            args = self._args(cell, self.tuning_seed, chosen, {name: f"runs/{name}" for name in cell.needs()})
            try:
                config = composed(args)
                if cell.expert is None:  # else its own config says the rest
                    checked(args)
            except UserError as e:
                raise ConfigError(f"{self.name}, runs.{cell.name}: {e}") from e
            if chosen:
                self._check_tuned(cell, config)

    def _check_tuned(self, cell: Cell, config: Mapping[str, Any]) -> None:
        """Refuse what would be chosen without validation, or on the seed that it is reported of."""
        trainer = {**TRAINER_DEFAULTS, **(config.get("trainer") or {})}
        none = trainer.get("limit_val_batches") == 0 or "few_shot" in (config.get("data") or {})
        steps, first = trainer["max_steps"], math.inf if none else trainer["val_check_interval"]
        if isinstance(steps, int) and isinstance(first, int | float) and 0 < steps < first:
            raise ConfigError(
                f"{self.name}, runs.{cell.name} is tuned on validation, and has none within its {steps} steps; lower "
                "trainer.val_check_interval (data.few_shot and trainer.limit_val_batches 0 leave none at all)"
            )
        if self.tuning_seed in (cell.seeds or self.seeds):
            raise ConfigError(
                f"{self.name}, runs.{cell.name} is tuned under seed {self.tuning_seed}, which must be none of its "
                "seeds; leave it out of them, or give the study file another tuning_seed"
            )


def _validation(job: Job) -> float | None:
    """The best validation accuracy of a finished fit."""
    if not job.done:
        return None
    report = json.loads((job.folder / "report.json").read_text(encoding="utf-8"))
    score: float | None = report.get("details", {}).get("training", {}).get("best_validation")
    return score


def _leaves(flags: Mapping[str, Any]) -> list[str]:
    """The keys that flags set, those in mappings too; of an optimizer by its name, its class."""
    found = []
    for key, value in flags.items():
        inner = {"class_path": 0} if key.removeprefix("model.") in HOMES and isinstance(value, str) else value
        found += [f"{key}.{name}" for name in inner] if isinstance(inner, Mapping) and inner else [key]
    return found


def _sets(flag: str, keys: Iterable[str]) -> str:
    """The first of some keys that a flag replaces, alone or with all that is around it; else nothing."""
    plain = {key.replace(".init_args.", "."): key for key in keys}
    return next((key for at, key in plain.items() if f"{at}.".startswith(f"{flag}.") or flag.startswith(f"{at}.")), "")


def _keys(adapt: bool, strategies: Sequence[str] = tuple(STRATEGIES)) -> set[str]:
    """`section.key` of everything that `adapt`, or the commands around `fit`, can be given."""
    return {f"{section}.{key}" for section, keys in sections(adapt, strategies).items() for key in keys}


def _seeds(name: str, given: Any) -> tuple[int, ...]:
    parts = [str(part).strip() for part in given] if isinstance(given, list | ListConfig) else []
    whole = all(p.isdecimal() and int(p) < 2**32 for p in parts)
    if not parts or not whole or len({*map(int, parts)}) < len(parts):
        raise ConfigError(
            f"{name} must be different whole numbers, such as 0,1,2, not {shown(','.join(parts) or str(given), 60)}"
        )
    return tuple(map(int, parts))
