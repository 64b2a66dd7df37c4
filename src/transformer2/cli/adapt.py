"""`adapt`: an unseen task, experts, a strategy -> answers, a report beside its controls, and for cem a new expert."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer2.arguments import written
from transformer2.cli.check import STRATEGIES, check, folder_name, is_folder, keys_help, sections, suggestion
from transformer2.cli.compose import compose, parse_flags
from transformer2.cli.folder import check_writable, holds_run, run_folder
from transformer2.errors import ConfigError, nearest, shown

if TYPE_CHECKING:
    from transformer2.callbacks.evaluator import AdaptationEvaluator
    from transformer2.cli.experiment import Experiment

KEYS = ("name", "seed_everything", "model", "data", "trainer", "adapt", "strategy")
OPTIONS = ("run_dir", "resume")
SWITCHES = ("help", "print_config", "quiet")

HELP = """\
usage: transformer2 adapt [--strategy {strategies}] [--config FILE ...] [--KEY.SUB VALUE ...]

Adapt to an unseen task with experts, in two passes: choose a z, then answer with it. Without a config: the embedded
model, its shipped experts and a task that needs two of them at once (conf/adapt_tiny.yaml).

  --strategy NAME      cem      search mixing weights on a few rows of the task (default)
                       prompt   the base model names the category of every request; its expert answers
                       cls      a classification expert names it
                       all      the three, one after the other
  --adapt.KEY VALUE    of the strategy, e.g. --adapt.experts '[runs/a/expert, runs/b/expert]' --adapt.generations 20
                       --adapt.granularity kind --adapt.search sep_cma --adapt.preset paper
  --data.KEY VALUE     --data.task tiny_math_hard --data.few_shot 10 --data.protocol paper --data.test_limit 200
  --model.KEY VALUE    --model.base FOLDER
  --config FILE        a config file with these keys; several are merged, later ones win
  --seed_everything N  seed of the shots and of the search (default 0)
  --run_dir DIR        where the run is kept (default runs/<name>; a number is added rather than overwriting)
  --resume DIR         go on with an interrupted run, in its folder
  --print_config       print the composed config, and stop
  --quiet              no progress bar
  --debug              show the traceback of an error
{keys}
The run folder holds config.yaml, report.json, records.jsonl, figures/, TensorBoard events and, for cem, expert/: a
folder like any other expert's.
"""


def adapt(args: Sequence[str]) -> int:
    """Adapt, answer, report."""
    flags = parse_flags(args, OPTIONS, SWITCHES, KEYS)
    if "help" in flags.switches:
        print(HELP.format(strategies="|".join([*STRATEGIES, "all"]), keys=keys_help(adapt=True)), end="")
        return 0
    resumed = flags.options.get("resume")
    if resumed is not None and not (Path(resumed) / "config.yaml").is_file():
        raise ConfigError(f"--resume {resumed} holds no run; give the folder of an interrupted adapt")
    configs = [str(Path(resumed) / "config.yaml")] if resumed else flags.configs or ["conf/adapt_tiny.yaml"]
    config = compose(configs, flags.overrides, KEYS)
    check(config, "adapt", folders="print_config" not in flags.switches)
    config["model"].pop("rollout", None)  # rows differ in z here, which the default engine alone can draw
    strategy = config.setdefault("strategy", "cem")
    known = [*STRATEGIES, "all"]
    if strategy not in known:
        raise ConfigError(
            f"unknown strategy {written(strategy)}{nearest(str(strategy), known)} Known: {', '.join(known)}"
        )
    strategies = list(STRATEGIES) if strategy == "all" else [strategy]
    _check_flags(strategies, [key for key, _ in flags.overrides])
    if "print_config" in flags.switches:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
        return 0
    classifier = (config.get("adapt") or {}).get("classifier")
    if "cls" in strategies and classifier is not None and not is_folder(classifier):
        raise ConfigError(
            f"adapt.classifier: {shown(classifier)} is no folder here; train it with fit, or name its own"
        )
    name = folder_name(config.pop("name", None) or f"adapt_{strategy}")
    check_writable(resumed or flags.options.get("run_dir") or "runs")
    start = time.perf_counter()

    # From here on the heavy libraries are needed.
    from transformer2.cli.train import quieten

    quiet = "quiet" in flags.switches
    quieten(quiet)
    with run_folder(resumed or flags.options.get("run_dir"), name, resumed=resumed is not None) as folder:
        return _run(config, strategies, folder, quiet, start)


def _run(config: dict[str, Any], strategies: Sequence[str], folder: Path, quiet: bool, start: float) -> int:
    from transformer2.cli.experiment import Experiment, explained
    from transformer2.data import UnseenTaskDataModule
    from transformer2.report.adaptation import adaptation_table

    settings = dict(config.pop("adapt", None) or {})
    del config["strategy"]
    settings.setdefault("seed", config.get("seed_everything", 0))
    trainer = dict(config.pop("trainer", None) or {})
    given = list(trainer.get("callbacks") or [])
    callbacks = [*given, *_evaluators(strategies, settings)]
    experiment = Experiment.of(
        {**config, "trainer": {**trainer, "callbacks": callbacks}}, folder, quiet, data_class=UnseenTaskDataModule
    )
    experiment.data.setup("predict")  # rows that cannot be read are found before there is a folder
    _keep_config(experiment, given, strategies, settings)
    ours = [c for c in experiment.callbacks_of(_base_class()) if c.own_task is None]
    for evaluator in ours:
        evaluator.folder = folder if len(ours) == 1 else folder / evaluator.strategy
        evaluator.progress = not quiet
    kept, again = f"go on with transformer2 adapt --resume {folder}", "nothing was kept yet; run the command again"
    experiment.hint = lambda: kept if holds_run(folder) else again
    for evaluator in ours:
        evaluator.cache = ours[0].cache  # base and controls are the same for all: answered once
        with explained():
            _one(experiment, evaluator, ours)
    if experiment.trainer.is_global_zero:
        if len(ours) > 1:
            _together(folder, ours)
        print(adaptation_table({c.strategy: c.report for c in ours if c.report is not None}))
        print(f"  saved to {folder}, {time.perf_counter() - start:.0f} s after the command")
    return 0


def _one(experiment: Experiment, evaluator: AdaptationEvaluator, ours: Sequence[AdaptationEvaluator]) -> None:
    """Run one strategy, unless an interrupted run has its report already."""
    from lightning.pytorch.loggers import TensorBoardLogger

    from transformer2.report.table import read_report

    assert evaluator.folder is not None
    if (evaluator.folder / "report.json").exists():
        evaluator.report = read_report(evaluator.folder)
    else:
        trainer: Any = experiment.trainer
        everything = list(trainer.callbacks)
        trainer.callbacks = [c for c in everything if c is evaluator or c not in ours]
        if len(ours) > 1 and isinstance(trainer.logger, TensorBoardLogger):
            # A run of TensorBoard for each strategy: they share tags.
            trainer.logger = TensorBoardLogger(evaluator.folder, name="", version="")
        try:
            trainer.predict(experiment.module, experiment.data, return_predictions=False)
        finally:
            trainer.callbacks = everything


def _together(folder: Path, ours: Sequence[AdaptationEvaluator]) -> None:
    """One report.json with every strategy, all records, all figures; the strategies' own folders stay."""
    import json
    import shutil

    from transformer2.report.table import write_text

    records, reports = "", {}
    (folder / "figures").mkdir(exist_ok=True)
    for evaluator in ours:
        assert evaluator.folder is not None and evaluator.report is not None
        records += (evaluator.folder / "records.jsonl").read_text(encoding="utf-8")
        reports[evaluator.strategy] = evaluator.report.to_json()
        for picture in (evaluator.folder / "figures").glob("*.png"):
            shutil.copyfile(picture, folder / "figures" / f"{evaluator.strategy}_{picture.name}")
    write_text(folder / "records.jsonl", records)
    write_text(folder / "report.json", json.dumps({"strategies": reports}, indent=2) + "\n")


def _base_class() -> type[AdaptationEvaluator]:
    from transformer2.callbacks.evaluator import AdaptationEvaluator

    return AdaptationEvaluator


def _settings_of(strategy: str) -> set[str]:
    """The keys under `adapt` that a strategy takes."""
    return set(sections(True, [strategy])["adapt"])


def _check_flags(strategies: Sequence[str], flags: Sequence[str]) -> None:
    """A config may hold the settings of every strategy; a flag must be of one that runs.

    Raises:
        ConfigError: A key that none of them takes, with the nearest one.
    """
    known = sections(True, strategies)
    for flag in flags:
        if flag.startswith("adapt.") and flag.split(".")[1] not in known["adapt"]:
            raise ConfigError(
                f"unknown config key {flag} for --strategy {', '.join(strategies)}{suggestion(flag, known)}"
            )


def _evaluators(strategies: Sequence[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One callback a strategy, as config entries, each with the settings that it takes."""
    return [
        {"class_path": STRATEGIES[s], "init_args": {k: v for k, v in settings.items() if k in _settings_of(s)}}
        for s in strategies
    ]


def _keep_config(
    experiment: Experiment, given: list[Any], strategies: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """The run's config as YAML that runs again, and that `--resume` reads."""
    import yaml

    from transformer2.report.table import write_text

    whole = yaml.safe_load(experiment.yaml())
    whole["trainer"]["callbacks"] = given
    whole |= {"strategy": strategies[0] if len(strategies) == 1 else "all", "adapt": dict(settings)}
    experiment.folder.mkdir(parents=True, exist_ok=True)
    write_text(experiment.folder / "config.yaml", yaml.safe_dump(whole, sort_keys=False))
