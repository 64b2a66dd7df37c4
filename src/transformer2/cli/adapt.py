"""`adapt`: an unseen task, experts, a strategy -> answers, a report with its controls, and for cem a new expert."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from transformer2.adaptation import NO_CLASSIFIER, STRATEGIES
from transformer2.arguments import written
from transformer2.cli.check import check
from transformer2.cli.compose import ADAPT_DEFAULT, compose, flags_of
from transformer2.cli.folder import check_unnamed, check_writable, holds_run, run_folder
from transformer2.cli.keys import ADAPT_KEYS, UNREAD, keys_help, sections, suggestion
from transformer2.cli.schema import value_of
from transformer2.cli.values import one_of, run_name
from transformer2.errors import ConfigError, DataError
from transformer2.files import LAST, check_directory, source_digest, write_text
from transformer2.svf.base_folder import EMBEDDED
from transformer2.svf.format import name_of

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from transformer2.adaptation.evaluate import Evaluation
    from transformer2.adaptation.strategy import Strategy
    from transformer2.cli.experiment import Experiment
    from transformer2.types import Report

# What may change when a run is resumed: how it runs, how long it searches, and where rows are, which are compared by
# what they hold. Experts may have moved, too, under the names that they had.
FREE = (
    *("name", "trainer.", "model.memory.", "data.data_dir", "data.eval_batch_size"),
    *("adapt.generations", "adapt.max_evaluations", "adapt.max_minutes", "adapt.max_rows"),
    "data.task_options.path",
)
KNOWN = (*STRATEGIES, "all")
LIMITS = ("trainer.limit_test_batches", "trainer.fast_dev_run")

HELP = """\
usage: transformer2 adapt [--strategy {strategies}] [--config FILE ...] [--KEY.SUB VALUE ...]

Adapt to an unseen task with experts, in two passes: choose a z, then answer with it. Without a config: the embedded
model, its shipped experts and a task that needs two of them at once (conf/adapt_tiny.yaml); a base of your own needs
--data.task and --adapt.experts.

  --strategy NAME      cem      search mixing weights on a few rows of the task (default)
                       prompt   the base model names the category of every request; its expert answers
                       cls      a classification expert names it
                       scores   the likeliest category, nothing to parse; --adapt.soft true mixes by their probabilities
                       all      the four, one after the other; cls where there is a classification expert
  --adapt.KEY VALUE    of the strategy, e.g. --adapt.experts '[runs/a/expert, runs/b/expert]' --adapt.generations 20
                       --adapt.granularity kind --adapt.search sep_cma --adapt.preset paper
  --data.KEY VALUE     --data.task tiny_math_hard --data.few_shot 10 --data.protocol paper --data.test_limit 200
  --model.KEY VALUE    --model.base FOLDER
  --config FILE        a config file with these keys; several are merged, later ones win
  --seed_everything N  seed of the shots and of the search (default 0)
  --run_dir DIR        where the run is kept (default runs/<name>; a number is added rather than overwriting)
  --resume DIR         resume an interrupted run, in its folder and with its settings
  --print_config       print the composed config, and stop
  --quiet              no progress bar
  --debug              show the traceback of an error
{keys}
The run folder holds config.yaml, report.json, records.jsonl, figures/, TensorBoard events and, for cem, expert/: a
folder like any other expert's.
"""


def adapt(args: Sequence[str]) -> int:
    """Adapt, answer, report."""
    flags = flags_of(args, HELP.format(strategies="|".join(KNOWN), keys=keys_help(adapt=True)), ADAPT_KEYS)
    resumed = flags.options.get("resume")
    begun: list[str] = []
    old: dict[str, Any] = {}
    if resumed is not None:
        begun = [f"{resumed}/config.yaml"]
        if not Path(begun[0]).is_file():
            raise ConfigError(f"--resume {resumed} holds no run; give the folder of an interrupted adapt")
        if "run_dir" in flags.options:
            raise ConfigError(f"--resume {resumed} resumes in that folder; leave --run_dir out")
        if "strategy" not in (old := compose(begun, [], ADAPT_KEYS)):
            raise ConfigError(
                f"--resume {resumed} holds a run of fit, validate or test, not of adapt; a fit is resumed with "
                f"fit --ckpt_path {resumed}/{LAST}"
            )
    configs = [*begun, *flags.configs] or ([ADAPT_DEFAULT] if _on_embedded(flags.overrides) else [])
    config = compose(configs, flags.overrides, ADAPT_KEYS)
    check(config, "adapt", folders="print_config" not in flags.switches)
    if resumed is not None and (flags.overrides or flags.configs):
        check(old, "adapt", folders=False)
        _check_same(resumed, old, config)
    strategies = strategies_of(config, [key for key, _ in flags.overrides])
    config["model"].pop("rollout", None)  # rows differ in z here, which the default engine alone can draw
    check_unnamed(flags)
    if "print_config" in flags.switches:
        print(yaml.safe_dump(config, sort_keys=False), end="")
        return 0
    classifier = config["adapt"].get("classifier")
    if {"cls", "scores"} & {*strategies} and classifier is not None:
        check_directory(classifier, "adapt.classifier", "train it with fit, or name its folder", ConfigError)
    if "cls" in strategies and classifier is None and config["model"].get("base", "tiny") != "tiny":
        if config["strategy"] == "cls":
            raise ConfigError(f"strategy cls: {NO_CLASSIFIER}")
        print(f"cls is left out of all: {NO_CLASSIFIER}")
        strategies.remove("cls")
    name = run_name(config.pop("name", None) or f"adapt_{config['strategy']}")
    check_writable(resumed or flags.options.get("run_dir") or "runs")
    start = time.perf_counter()

    # From here on the heavy libraries are needed.
    from transformer2.cli.train import silence_libraries

    quiet = "quiet" in flags.switches
    silence_libraries(quiet)
    with run_folder(resumed or flags.options.get("run_dir"), name, resumed=resumed is not None) as folder:
        by_flag = any(key == "trainer.callbacks" for key, _ in flags.overrides)
        return _run(config, strategies, folder, quiet, start, by_flag)


def _run(
    config: dict[str, Any], names: Sequence[str], folder: Path, quiet: bool, start: float, by_flag: bool = False
) -> int:
    """Adapt; evaluators of `fit` are left out where a config file has them, and refused where a flag gave them."""
    from transformer2.adaptation.strategy import Strategy, check_whole
    from transformer2.cli.classes import class_of
    from transformer2.cli.experiment import Experiment, explained
    from transformer2.data import UnseenTaskDataModule
    from transformer2.distributed import in_lockstep

    settings = config.pop("adapt")
    settings.setdefault("seed", config.get("seed_everything", 0))
    del config["strategy"]
    strategies: list[Strategy] = []
    for name in names:
        module, _, kind = STRATEGIES[name].rpartition(".")
        taken = sections(True, [name])["adapt"]
        strategies.append(getattr(import_module(module), kind)(**{k: v for k, v in settings.items() if k in taken}))
    experiment = Experiment(config, folder, quiet, data_class=UnseenTaskDataModule)
    check_whole(in_lockstep(experiment.trainer.strategy))
    # The whole config as YAML that runs again, and that --resume reads.
    text = experiment.yaml(strategy=names[0] if len(names) == 1 else "all", adapt=settings)
    # A user's strategy comes as a callback without a task; its arguments in the config and its module are its settings.
    own = [c for c in experiment.callbacks_of(Strategy) if c.own_task is None]
    for_fit = [type(c).__name__ for c in experiment.callbacks_of(Strategy) if c not in own]
    if for_fit and by_flag:
        raise ConfigError(f"{for_fit[0]} with a task of its own runs in fit; leave its task out to run it in adapt")
    named = [(class_of(entry), entry) for entry in experiment.callbacks or [] if isinstance(entry, Mapping)]
    for strategy in own:
        cls = type(strategy)
        given = [entry.get("init_args") for kind, entry in named if kind is cls]
        strategy.settings = {**strategy.settings, "init_args": given, "source": source_digest(cls)}
    called = [strategy.name for strategy in (*own, *strategies)]
    if twice := next((name for name in called if called.count(name) > 1), None):  # a name is a folder and a row
        raise ConfigError(
            f"two strategies are called {twice} (a callback without a task is one, too); run adapt once for each"
        )
    for strategy in (*own, *strategies):
        strategy.leave_out_shots(experiment.data)
    experiment.data.setup("test")  # rows that cannot be read are found before there is a folder
    kept, again = f"resume with transformer2 adapt --resume {folder}", "nothing was saved yet; run the command again"
    experiment.hint = lambda: kept if holds_run(folder) else again
    with explained():
        return experiment.in_every_process(lambda: _adapt(experiment, [*own, *strategies], text, quiet, start))


def _adapt(experiment: Experiment, strategies: Sequence[Strategy], text: str, quiet: bool, start: float) -> int:
    """One strategy after the other; in every process."""
    from lightning.pytorch.loggers import TensorBoardLogger

    from transformer2.adaptation.context import Cache
    from transformer2.adaptation.evaluate import evaluate
    from transformer2.adaptation.strategy import origin
    from transformer2.data.loader import batches_within
    from transformer2.report.adaptation import adaptation_table

    trainer, data, folder = experiment.trainer, experiment.data, experiment.folder
    answerer, several = experiment.module.answerer(), len(strategies) > 1
    count = batches_within(data.test_dataloader(), trainer.limit_test_batches)
    reports: dict[str, Report] = {}
    of = origin(answerer, data, "few_shot", "test")
    cache: Cache = {}  # base and controls are the same for all: answered once
    for strategy in strategies:
        own = folder / strategy.name if several else folder
        facts = {"origin": of, **({"settings": dict(strategy.settings)} if strategy.settings else {})}
        if (earlier := _earlier(own, {"made_from": strategy.made_from(data.base), **facts})) is not None:
            reports[strategy.name] = earlier
            continue
        if trainer.is_global_zero:
            write_text(folder / "config.yaml", text)
            (folder / "report.json").unlink(missing_ok=True)  # it is no longer what this run ends with
        found = evaluate(answerer, data, strategy, cache, own, progress=not quiet, max_batches=count)
        found = replace(found, report=replace(found.report, details={**found.report.details, **facts}))
        reports[strategy.name] = found.report
        if trainer.is_global_zero:
            loggers = [  # strategies share tags: of several, each has a run of TensorBoard
                TensorBoardLogger(own, name="", version="") if several and isinstance(x, TensorBoardLogger) else x
                for x in trainer.loggers
            ]
            _write(own, strategy, found, loggers)
    if trainer.is_global_zero:
        if several:
            _together(folder, reports)
        print(adaptation_table(reports))
        print(f"  saved to {folder}, {time.perf_counter() - start:.0f} s after the command")
    return 0


def _earlier(folder: Path, now: Mapping[str, Mapping[str, Any]]) -> Report | None:
    """What an interrupted run had finished; damaged, or of other experts, rows or settings, it is made again."""
    from transformer2.adaptation.strategy import differs
    from transformer2.report.table import read_report

    if not all((folder / name).exists() for name in ("report.json", "records.jsonl")):
        return None
    try:
        report = read_report(folder)
    except DataError as e:
        warnings.warn(f"{e.problem}; it is made again", stacklevel=2)
        return None
    if what := differs(report.details, now):
        warnings.warn(f"{folder} {what}; it is made again", stacklevel=2)
        return None
    return report


def _write(folder: Path, strategy: Strategy, found: Evaluation, loggers: Sequence[Logger]) -> None:
    """Everything that one strategy leaves behind; report.json, which says that it is done, last."""
    from transformer2.experts import save_expert
    from transformer2.report.figures import save_figure
    from transformer2.report.table import write_report

    if found.figure is not None:
        save_figure(found.figure, folder / "figures" / f"{strategy.picture.rpartition('/')[2]}.png")
    if found.expert is not None:
        save_expert(found.expert, folder / "expert", overwrite=True)
    found.log(loggers, 0, f"adapt/{strategy.name}", strategy.picture)
    for logger in loggers:
        logger.finalize("success")
    write_report(folder, found.report, found.records)


def _together(folder: Path, strategies: Mapping[str, Report]) -> None:
    """One report.json with every strategy, all records, all figures; the strategies' own folders stay."""
    (folder / "figures").mkdir(exist_ok=True)
    for name in strategies:
        for picture in (folder / name / "figures").glob("*.png"):
            shutil.copyfile(picture, folder / "figures" / f"{name}_{picture.name}")
    records = [(folder / name / "records.jsonl").read_text(encoding="utf-8") for name in strategies]
    reports = {name: report.to_json() for name, report in strategies.items()}
    write_text(folder / "records.jsonl", "".join(records))
    write_text(folder / "report.json", json.dumps({"strategies": reports}, indent=2) + "\n")


def _on_embedded(flags: Sequence[tuple[str, str]]) -> bool:
    """Whether the flags leave the base to the default config, or name one of the embedded ones that it is for."""
    model = compose([], [flag for flag in flags if flag[0] in ("model", "model.base")], ADAPT_KEYS).get("model")
    return not isinstance(model, dict) or model.get("base", "tiny") in EMBEDDED


def strategies_of(config: dict[str, Any], flags: Sequence[str]) -> list[str]:
    """The strategies that a config names; it may hold the settings of all and of `fit`, a flag must be of what runs.

    Raises:
        ConfigError: No such strategy, or a key that nothing reads, with the nearest one.
    """
    if config["trainer"].get("limit_predict_batches") is not None:
        raise ConfigError("trainer.limit_predict_batches is not read by adapt; set trainer.limit_test_batches")
    strategy = config.setdefault("strategy", "cem")
    one_of("strategy", strategy, KNOWN)
    strategies = list(STRATEGIES) if strategy == "all" else [strategy]
    known = sections(True, strategies)
    for flag in flags:
        if UNREAD.fullmatch(flag) and (flag, config["model"].get("rollout")) != ("model.rollout", "hf"):
            raise ConfigError(f"{flag} is not read by adapt; leave it out")
        if flag.startswith("adapt.") and flag.split(".")[1] not in known["adapt"]:
            raise ConfigError(
                f"unknown config key {flag} for --strategy {', '.join(strategies)}{suggestion(flag, known)}"
            )
    adapt, base = config["adapt"], config["model"].get("base", "tiny")
    if "adapt.dispatch_limit" in flags and adapt.get("dispatch_task") is None and base != "tiny":
        raise ConfigError("adapt.dispatch_limit counts labelled requests; name them: adapt.dispatch_task")
    return strategies


def _check_same(folder: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """A resumed run has one table, which must be of one config.

    Raises:
        ConfigError: Something that decides its numbers is another than what it was begun with.
    """
    defaults = {key: literal_eval(a.default or "None") for key, a in sections(True)["adapt"].items()}
    if not any(config["adapt"].get("preset") for config in (old, new)):
        defaults |= value_of("transformer2.adaptation.few_shot.DEFAULTS")
    was, asked = (
        _flat({**config, "adapt": defaults | {key: value for key, value in config["adapt"].items() if value != "auto"}})
        for config in (old, new)
    )
    for flat in (was, asked):
        experts = flat.get("adapt.experts")
        flat["adapt.experts"] = [name_of(path) for path in experts] if isinstance(experts, list) else experts
        flat["adapt.classifier"] = flat.get("adapt.classifier") and name_of(flat["adapt.classifier"])
    fixed = {*LIMITS, *(["data.eval_batch_size"] if any(map(was.get, LIMITS)) else [])}  # a limit counts batches
    for key in sorted({*was, *asked}):
        if was.get(key) != asked.get(key) and (key in fixed or not key.startswith(FREE)):
            raise ConfigError(
                f"--resume {folder} was begun with {key} {written(was.get(key))}, not {written(asked.get(key))}; leave "
                "it out, or begin again in another --run_dir"
            )


def _flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`model.sampling.stop` -> its value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat
