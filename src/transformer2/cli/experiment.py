"""One experiment: config -> datamodule, module, callbacks, trainer; then one verb, then the report."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from transformer2.callbacks import interrupt
from transformer2.callbacks.expert_checkpoint import ExpertCheckpoint
from transformer2.callbacks.last_checkpoint import LastCheckpoint
from transformer2.callbacks.monitoring import Monitoring
from transformer2.callbacks.peer_watchdog import PeerWatchdog
from transformer2.callbacks.progress import TrainingBar
from transformer2.checkpoints import read_checkpoint
from transformer2.cli.classes import check_classes, class_of
from transformer2.cli.keys import LINKED, TRAINER_DEFAULTS
from transformer2.cli.plan import check_memory
from transformer2.data import ExpertDataModule, FewShotDataModule
from transformer2.distributed import check_checkpoint, check_strategy
from transformer2.errors import ConfigError, UserError, one_line
from transformer2.files import write_text
from transformer2.module import SVFReinforceModule
from transformer2.plan.job import job_of, strategy_of
from transformer2.policy import base_dtype
from transformer2.report.build import Facts, build_report
from transformer2.report.curve import draw_curve
from transformer2.report.notes import on_answers
from transformer2.report.table import text_table, write_report
from transformer2.svf.base_folder import EMBEDDED
from transformer2.types import Score


class _CLI(LightningCLI):
    """Lightning's command line as a typed factory: every constructor argument is a config key."""

    parsers: ClassVar[dict[Any, LightningArgumentParser]] = {}  # by class of data; one holds nothing of a run

    def setup_parser(self, *args: Any) -> None:
        """Say base and seed once. Once in a process for a class of data: it takes as long as to read a config."""
        if self._datamodule_class not in self.parsers:
            super().setup_parser(*args)
            for target, source in LINKED.items():
                self.parser.link_arguments(source, target)
            self.parsers[self._datamodule_class] = self.parser
        self.parser = self.parsers[self._datamodule_class]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """The composed dict is all there is: sys.argv has been read already."""
        self.config = parser.parse_object(args)


@contextmanager
def explained() -> Iterator[None]:
    """Lightning finds fault with some settings only when it runs: in one line.

    Raises:
        ConfigError: With its words, for what Lightning itself raised.
    """
    try:
        yield
    except (MisconfigurationException, RuntimeError, ValueError) as e:
        *_, (frame, _) = traceback.walk_tb(e.__traceback__)
        if not frame.f_globals["__name__"].startswith("lightning."):
            raise
        raise ConfigError(f"the trainer cannot run: {one_line(e)}") from e


class Experiment:
    """A composed config, instantiated.

    Args:
        config: Keys `seed_everything`, `model`, `data`, `trainer`.
        folder: The run folder.
        quiet: No progress bar.
        data_class: Whose arguments `data` holds; None takes the one that they are of.

    Attributes:
        folder: The run folder.
        module: The LightningModule.
        data: The datamodule.
        trainer: The trainer.
        details: What the report says besides (`Report.details`).
        notes: Lines under its table.

    Raises:
        ConfigError: A key or value that no constructor takes, with the nearest valid key.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        quiet: bool = False,
        data_class: type[ExpertDataModule] | None = None,
    ) -> None:
        embedded = (config.get("model") or {}).get("base", "tiny") in EMBEDDED
        if embedded and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # its matrices are too small to share: on busy cores two threads take 4 x as long
        given = config.get("trainer") or {}
        check_classes(given)
        few_shot = "few_shot" in (config.get("data") or {})
        data_class = data_class or (FewShotDataModule if few_shot else ExpertDataModule)
        trainer = {**TRAINER_DEFAULTS, **({"accelerator": "cpu"} if embedded else {}), **given}
        trainer.setdefault("default_root_dir", str(folder))
        logger = {"save_dir": str(folder), "name": "", "version": ""}
        trainer.setdefault("logger", {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": logger})
        trainer["callbacks"] = _with_defaults(given.get("callbacks") or [], trainer, quiet)
        trainer.setdefault("enable_progress_bar", not quiet)
        options: dict[str, Any] = {"run": False, "seed_everything_default": 0, "save_config_callback": None}
        options |= {"auto_configure_optimizers": False, "parser_kwargs": {"exit_on_error": False}}
        options["load_from_checkpoint_support"] = False  # nothing calls save_hyperparameters
        try:
            self.cli = cli = _CLI(SVFReinforceModule, data_class, args={**config, "trainer": trainer}, **options)
        except UserError:
            raise
        except Exception as e:  # Lightning's, jsonargparse's and those of third-party classes have no common base
            if isinstance(e.__cause__, UserError):  # a callback's own, which jsonargparse buries in its list of types
                raise e.__cause__ from None
            raise ConfigError(f"the trainer cannot be built: {one_line(e)}") from e
        self.folder = folder
        self.callbacks = given.get("callbacks")
        self.added = [key for key in ("default_root_dir", "logger", "enable_progress_bar") if key not in given]
        self.module: SVFReinforceModule = cli.model
        self.data: ExpertDataModule = cli.datamodule
        self.trainer: L.Trainer = cli.trainer
        self.seed = int(cli.config.seed_everything)
        self.hint: Callable[[], str] = lambda: "nothing was changed; run the command again"  # after a signal
        self.trained = False
        self.details: dict[str, Any] = {}
        self.notes: list[str] = []
        if (listener := interrupt.current()) is not None:
            listener.on_signal = self.on_signal

    def yaml(self, **more: Any) -> str:
        """The whole config with every default, and further keys, as YAML that runs again (in another run folder)."""
        whole = yaml.safe_load(self.cli.parser.dump(self.cli.config, skip_none=False, skip_validation=True))
        for target in LINKED:
            group, _, key = target.partition(".")
            whole[group].pop(key, None)
        (whole["model"].get("model_kwargs") or {}).pop("token", None)  # a secret; set HF_TOKEN to run it again
        for key in self.added:
            whole["trainer"].pop(key, None)
        whole["trainer"]["callbacks"] = self.callbacks
        return str(yaml.safe_dump(whole | more, sort_keys=False))

    def preflight(self) -> None:
        """Refuse, before the model is loaded, a run that cannot fit into memory with the longest prompt of its data.

        Raises:
            ConfigError: It cannot; the message says the first change that would make it fit.
        """
        self.data.setup("fit")
        self.data.train_dataloader()  # a batch larger than the data is that, before it is too large for the memory
        model, data, trainer = (self.cli.config[name].as_dict() for name in ("model", "data", "trainer"))
        data["batch_size"] = self.data.batch_size  # shots may be fewer
        gpus, nodes, device = self.trainer.num_devices, self.trainer.num_nodes, self.trainer.strategy.root_device
        strategy = strategy_of(trainer) or ("single" if gpus * nodes == 1 else "ddp")
        try:
            dtype = str(base_dtype(model["base"], model["dtype"], model["model_kwargs"])).removeprefix("torch.")
            job = job_of({**model, "dtype": dtype}, data, strategy, gpus, nodes, self.data.longest_prompt())
        except UserError:
            return  # what cannot be planned (another kind of adapter, an unknown base) is not refused for that
        check_memory(job, device)

    @explained()
    def fit(self, expert: Path | None, ckpt_path: str | None, start: float) -> int:
        """Train; then score base and best expert on the test split.

        Raises:
            ConfigError: A strategy that training does not run under.
        """
        check_strategy(self.trainer.strategy)
        self._open(expert, ckpt_path, fits=True)
        again = "run the command again" if ckpt_path is None else f"resume with --ckpt_path {ckpt_path}"
        self.hint = lambda: f"nothing was saved yet; {again}"
        if self.trainer.is_global_zero and (sizes := self.data.sizes):
            numbers = ", ".join(f"{n} {split}" for split, n in sizes.items())
            print(f"{self.data.task.name}   questions: {numbers}", flush=True)
        setup = time.perf_counter() - start
        self.trainer.fit(self.module, self.data, ckpt_path=ckpt_path)
        self.trained = True
        training, notes = self._of_training()
        self.hint = lambda: f"the trained expert is in {self.folder / 'expert'}: transformer2 test --expert scores it"
        trained = time.perf_counter() - start
        self.trainer.test(self.module, self.data, verbose=False)
        now = time.perf_counter() - start
        seconds = {"setup": setup, "train": trained - setup, "test": now - trained, "total": now}
        self._report(seconds, {"training": training}, notes)
        here = (isinstance(x, TensorBoardLogger) and Path(x.log_dir) == self.folder for x in self.trainer.loggers)
        if self.trainer.is_global_zero and any(here):
            print(f"  curve in {draw_curve(self.folder, self.folder / 'figures' / 'curve.png')}")
        return 0

    @explained()
    def validate(self, expert: Path | None, ckpt_path: str | None, start: float) -> int:
        """Score on the validation split."""
        self._open(expert, ckpt_path)
        self.trainer.validate(self.module, self.data, ckpt_path=ckpt_path, verbose=False)
        metrics = self.trainer.callback_metrics
        score = Score(float(metrics["val/accuracy"]), float(metrics["val/accuracy_se"]), int(metrics["val/n"]))
        lines = [f"{self.data.task.name}   validation split, n = {score.n}", str(score)]
        text = "\n  ".join([*lines, *on_answers([answer for _, answer in self.module.validated], "model")])
        rank_zero_only(write_text)(self.folder / "validation.txt", f"{text}\n")
        print(text)
        return 0

    @explained()
    def test(self, expert: Path | None, ckpt_path: str | None, start: float) -> int:
        """Score base and expert on the test split."""
        self._open(expert, ckpt_path)
        self.trainer.test(self.module, self.data, ckpt_path=ckpt_path, verbose=False)
        self._report({"total": time.perf_counter() - start}, {}, self.module.alarms.notes())
        return 0

    def _open(self, expert: Path | None, ckpt_path: str | None, fits: bool = False) -> None:
        """Refuse a bad checkpoint, or one past the end, before anything is loaded; write the resolved config."""
        if ckpt_path is not None:
            check_checkpoint(self.trainer, read_checkpoint(ckpt_path), fits)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning keeps it on the function
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", self.yaml())
        self.module.expert = expert

    def _of_training(self) -> tuple[dict[str, Any], list[str]]:
        """What a report says of the training: facts and notes."""
        best, module = self._callback(ExpertCheckpoint), self.module
        notes = module.alarms.notes(best.best_step)
        if self.trainer.should_stop:
            notes.append(f"stopped early, after {module.global_step} steps; the expert is of step {best.best_step}")
        if before := module.curve.before:
            notes.append(
                f"validations up to step {before[-1]['step']} were of other questions or judged by another task: they "
                "are not in the curve and chose no expert"
            )
        if isinstance(self.data, FewShotDataModule):
            shots = f"trained on {len(self.data.shots())} shots, without a validation"
            notes.append(f"{shots}: the expert is of the last step, {best.best_step}")
        return {**module.facts(), "best_step": best.best_step, "best_validation": best.best_score}, notes

    def _report(self, seconds: dict[str, float], details: dict[str, Any], notes: Sequence[str]) -> None:
        """Write and print the report of a test."""
        records = self.module.records
        details = {**self.details, **self.module.tested.facts(records).details, **details}
        if isinstance(self.data, FewShotDataModule):
            details["few_shot"] = [e.id for e in self.data.shots().examples]
        facts = Facts(details=details, notes=[*self.notes, *notes])
        report = build_report(records, self.data.task, self.data.reported, seconds, (self.seed,), facts=facts)
        if self.trainer.is_global_zero:
            write_report(self.folder, report, records)
            print(f"{text_table(report)}\n  saved to {self.folder}")

    def on_signal(self, number: int) -> str | None:
        """On a signal: tell the other processes, save, and say how to resume. Called in a thread."""
        if (launcher := self.trainer.strategy.launcher) is not None:
            launcher.kill(number)
        if (watchdog := self._callback(PeerWatchdog)) is not None:
            watchdog.forward_signal(number)
        if not self.trainer.is_global_zero:
            return None
        if self.trained:
            return self.hint()
        if (last := self._callback(LastCheckpoint)) is not None and last.path is not None:
            last.write()
            return f"resume with --ckpt_path {last.path}"
        own = (c.last_model_path or c.best_model_path for c in self.callbacks_of(ModelCheckpoint))
        return next((f"resume with --ckpt_path {path}" for path in own if os.path.exists(path)), self.hint())

    def callbacks_of(self, kind: type) -> list[Any]:
        """The trainer's callbacks of a class."""
        return [c for c in self.trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]

    def in_every_process(self, function: Callable[[], int]) -> int:
        """Call a function where and as the trainer's own verbs would: on each device, the model ready, watched.

        Args:
            function: Called in each process; what it returns here is returned.
        """
        trainer, module, strategy = self.trainer, self.module, self.trainer.strategy
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it at run time
        module.trainer = self.data.trainer = trainer
        trainer.datamodule = self.data  # type: ignore[attr-defined]

        def here() -> int:
            strategy.connect(module)
            strategy.setup_environment()
            for callback in callbacks:
                callback.setup(trainer, module, "predict")
            module.configure_model()
            strategy.model_to_device()
            result = function()
            for callback in callbacks:
                callback.teardown(trainer, module, "predict")
            strategy.teardown()
            return result

        try:
            return here() if strategy.launcher is None else int(strategy.launcher.launch(here, trainer=trainer))
        except BaseException as e:
            for callback in callbacks:
                callback.on_exception(trainer, module, e)
            strategy.teardown()
            raise

    def _callback(self, kind: type) -> Any:
        return next(iter(self.callbacks_of(kind)), None)


def _with_defaults(given: list[Any], trainer: Mapping[str, Any], quiet: bool) -> list[Any]:
    """The user's callbacks, and ours where the user named none of their class."""
    ours: list[type] = [ExpertCheckpoint, Monitoring, PeerWatchdog]
    if trainer.get("enable_checkpointing") is not False:
        ours.append(LastCheckpoint)
    if not quiet and trainer.get("enable_progress_bar", True):
        ours.append(TrainingBar)
    named = [class_of(entry) for entry in given]
    for entry, cls in zip(given, named, strict=True):
        if isinstance(entry, dict) and cls is ModelCheckpoint:
            # The folder is this run's alone: a second last.ckpt next to ours would be called last-v1.ckpt.
            entry.setdefault("init_args", {}).setdefault("enable_version_counter", False)
    kinds = [cls for cls in named if isinstance(cls, type)]
    instead: dict[type, type] = {TrainingBar: ProgressBar}  # a trainer has one
    missing = [kind for kind in ours if not any(issubclass(cls, instead.get(kind, kind)) for cls in kinds)]
    return [*given, *({"class_path": f"{k.__module__}.{k.__qualname__}"} for k in missing)]
