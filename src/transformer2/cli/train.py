"""`fit`, `validate` and `test`: compose, instantiate in reading order, call one Trainer verb, report."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformer2.arguments import LARGEST_SEED
from transformer2.cli.check import check
from transformer2.cli.compose import PACKAGED, compose, flags_of
from transformer2.cli.folder import check_unnamed, check_writable, config_name, run_folder
from transformer2.cli.keys import KEYS, UNREAD, keys_help
from transformer2.cli.values import number, run_name
from transformer2.errors import ConfigError, shown
from transformer2.files import LAST, MANIFEST, check_directory, file_digest, whole_folder
from transformer2.svf.format import WEIGHTS, name_of, peft_type
from transformer2.tasks import names

HELP = """\
usage: transformer2 {command} --config FILE [--config FILE ...] [--KEY.SUB VALUE ...]

{what}

  --config FILE        a config file; several are merged, later ones win. A file that is not here is looked up among the
                       shipped ones: {configs};
                       and, to put on top, conf/preset/paper.yaml, conf/strategy/{{ddp,zero2,zero3,zero3_offload}}.yaml,
                       conf/quantisation/{{nf4,int8,torchao_int8}}.yaml, conf/rollout/{{hf,paged,vllm}}.yaml
  --KEY.SUB VALUE      any key of the config, e.g. --model.loss.kl_coef 0.1 --data.batch_size 32 --trainer.max_steps 50
  --data.few_shot K    train on the K rows that adapt would draw (--data.protocol clean|paper), test on the others
  --optimizer CLASS    short for --model.optimizer, as --optimizer.lr 2e-3 is; so is --lr_scheduler
  --seed_everything N  seed of everything (default 0)
  --run_dir DIR        where the run is kept (default runs/<name>; a number is added rather than overwriting)
  --ckpt_path FILE     {ckpt}
  --expert DIR         start from, or score, this expert folder{shuffle}
  --print_config       print the whole config with every default, and stop
  --quiet              no progress bar
  --no_preflight       do not check first whether the run fits into memory (`transformer2 plan`)
  --debug              show the traceback of an error
{keys}
The run folder holds config.yaml, TensorBoard events, checkpoints/, expert/, report.json. Look at the curves with
  tensorboard --logdir runs
"""
RESUME = f"resume from this checkpoint ({LAST} of a run of the same policy and task)"
SCORE = "score this checkpoint, under the model.* and data.task that it was trained with"
SHUFFLE = """
  --shuffle_expert N   score a control instead: the same values of z in another order within each matrix (seed N)"""
# What decompose, spectrum and export read; a study gives every run its seed.
_OF_A_BASE = re.compile(r"(name|seed_everything|model|model\.(base|dtype|model_kwargs|adapter)(\..*)?)$")
WHAT = {
    "fit": "Train one expert by REINFORCE with a KL penalty (or, with --model.objective next_token, on the task's own\n"
    "solutions), keep the best one by validation accuracy, and score base and expert on the test split.",
    "validate": "Score a model or expert on the validation split.",
    "test": "Score base and expert on the test split; writes report.json and records.jsonl.",
}


def run(command: str, args: Sequence[str]) -> int:
    """The command `fit`, `validate` or `test`."""
    flags = flags_of(args, help_text(command), KEYS)
    if not flags.configs and command == "fit":
        raise ConfigError("fit needs --config; try --config conf/tiny_math.yaml")
    expert = Path(flags.options["expert"]) if "expert" in flags.options else None
    if expert is not None and command != "fit" and "ckpt_path" in flags.options:
        raise ConfigError(f"--expert and --ckpt_path both say what to {command}; give one of them")
    seed = number(flags.options, "shuffle_expert", None, 0, LARGEST_SEED)
    if seed is not None and expert is None:
        raise ConfigError("--shuffle_expert needs --expert: the folder of the expert to shuffle")
    check_unnamed(flags)
    config = compose(flags.configs, flags.overrides, KEYS)
    kept = "print_config" not in flags.switches
    if expert is not None:
        said = any(key.split(".")[:2] == ["model", "adapter"] for key, _ in flags.overrides)
        take_from_expert(config, command, expert, folders=kept, said=said)
    check(config, command, folders=kept)
    warn_of_unread(command, [key for key, _ in flags.overrides], config)
    _check_checkpoint(flags.options.get("ckpt_path"))
    name = run_name(config.pop("name", None) or (config_name(flags.configs[-1]) if flags.configs else command))
    if kept:
        check_writable(flags.options.get("run_dir") or "runs")
    start = time.perf_counter()

    # From here on the heavy libraries are needed.
    silence_libraries("quiet" in flags.switches)
    from transformer2.cli.experiment import Experiment

    if not kept:
        print(Experiment(config, Path("runs") / name).yaml(), end="")
        return 0
    given = expert
    with run_folder(flags.options.get("run_dir"), name) as folder, _shuffled(expert, seed) as expert:
        experiment = Experiment(config, folder, quiet="quiet" in flags.switches)
        if given is not None:  # before it was shuffled
            from transformer2.experts import read_trained_on

            experiment.data.leave_out(**read_trained_on(given))
            experiment.details["made_from"] = {name_of(given): file_digest(given / WEIGHTS)}
        if seed is not None:
            experiment.details["shuffled"] = seed
            experiment.notes.append(f"z was put in another order within each matrix (seed {seed}): a control")
        if command == "fit" and "no_preflight" not in flags.switches:
            experiment.preflight()
        else:
            experiment.data.setup(command)  # rows that cannot be read are found before anything is kept
        verb = {"fit": experiment.fit, "validate": experiment.validate, "test": experiment.test}[command]
        return verb(expert, flags.options.get("ckpt_path"), start)


fit, validate, test = (partial(run, command) for command in WHAT)


def take_from_expert(
    config: dict[str, Any], command: str, expert: Path, folders: bool = True, said: bool = False
) -> None:
    """What an expert's own config says, where the user's says nothing: method and, but for `fit`, base and task.

    The rest of its adapter is read when the model is built, and held against what the user's config says of it; of
    what is only scored, against flags alone (`said`): a config that others begin with (`_base_`) is of another run.
    """
    check_directory(expert, "--expert", "give an expert's folder, such as runs/tiny_math/expert", ConfigError)
    # What is wrong with the user's own is said first; the adapter's keys are those of the expert's method, and the
    # options those of its task.
    given, data = config.get("model"), config.get("data")
    adapter = given.pop("adapter", None) if isinstance(given, dict) else None
    scores = command in ("test", "validate")
    options = data.pop("task_options", None) if scores and isinstance(data, dict) and "task" not in data else None
    check(config, command, folders)
    from transformer2.experts import read_config

    saved = read_config(expert)
    model = config["model"]
    if adapter is not None and not isinstance(adapter, dict):
        model["adapter"] = adapter  # for the next check to refuse
    elif adapter and (said or not scores or peft_type(adapter) == saved["peft_type"]):
        model["adapter"] = {"peft_type": saved["peft_type"], **adapter}
    elif saved["peft_type"] == "SVF" and isinstance(targets := saved.get("target_modules"), list):
        model["adapter"] = {"peft_type": "SVF", "target_modules": targets}  # for --print_config to show
    if command != "fit" and (own := saved.get("base_model_name_or_path")):
        model.setdefault("base", str(own))
        if model["base"] == own and (revision := saved.get("revision")):
            model["model_kwargs"] = {"revision": str(revision), **(model.get("model_kwargs") or {})}
    if scores and (task := saved.get("task")) and "task" not in config["data"]:
        if task not in names():  # whose code would be run
            raise ConfigError(f"{shown(expert)} was trained on {shown(task)!r}, a task of its own: give --data.task")
        config["data"]["task"] = task
    if options is not None:
        config["data"]["task_options"] = options


def warn_of_unread(command: str, flags: Sequence[str], config: Mapping[str, Any]) -> None:
    """Say which flags decide nothing. (A config may be shared with other commands.)"""
    model, steps = config["model"], config["trainer"].get("max_steps", -1)
    if command == "fit" and "trainer.max_epochs" in flags and "trainer.max_steps" not in flags and steps != -1:
        other = "--trainer.max_steps -1 leaves the end to trainer.max_epochs"
        warnings.warn(f"the run ends after trainer.max_steps {steps} of the config; {other}", stacklevel=3)
    unused = ["model.vllm"] if model.get("rollout") != "vllm" else []
    unused += ["model.test.temperature"] if not (model.get("test") or {}).get("samples") else []
    scores = command in ("validate", "test")
    if scores:
        scoring = re.compile(r"model\.(rollout|vllm|test)|trainer\.limit_")
        unused += [flag for flag in flags if UNREAD.fullmatch(flag) and not scoring.match(flag)]
    elif command != "fit":
        unused = [flag for flag in flags if not _OF_A_BASE.match(flag)]
    if unread := [flag for flag in flags if flag.startswith(tuple(unused))]:
        how = " (the answers that are scored are greedy)" if scores else ""
        warnings.warn(f"{command} does not read {', '.join(unread)}{how}; leave it out", stacklevel=3)


@contextmanager
def _shuffled(expert: Path | None, seed: int | None) -> Iterator[Path | None]:
    """The expert, or as long as it is scored a folder with its z in another order; every process has its own."""
    if expert is None or seed is None:
        yield expert
        return
    from transformer2.experts import shuffle_folder

    with tempfile.TemporaryDirectory() as scratch:
        yield shuffle_folder(expert, Path(scratch) / expert.name, seed)


def _check_checkpoint(ckpt_path: str | None) -> None:
    if ckpt_path is None or os.path.isfile(ckpt_path):
        return
    folder = ckpt_path if os.path.isdir(ckpt_path) else whole_folder(Path(ckpt_path))
    if os.path.isfile(os.path.join(folder, MANIFEST)):  # one of DeepSpeed's
        return
    what = "is not a file" if os.path.lexists(ckpt_path) else "does not exist"
    raise ConfigError(f"--ckpt_path {shown(ckpt_path)} {what}; give {LAST} of a run")


def help_text(command: str) -> str:
    """The help of one command."""
    shipped = ", ".join(sorted(str(p.relative_to(PACKAGED)) for p in (PACKAGED / "conf").glob("*.yaml")))
    wrapped = textwrap.fill(shipped, 118, initial_indent=" " * 23, subsequent_indent=" " * 23).strip()
    return HELP.format(
        command=command,
        what=WHAT[command],
        configs=wrapped,
        ckpt=RESUME if command == "fit" else SCORE,
        shuffle=SHUFFLE if command == "test" else "",
        keys=keys_help(adapt=False),
    )


class _Notes(logging.Handler):
    """A line on stderr, whatever that is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        print(record.getMessage(), file=sys.stderr)


def silence_libraries(quiet: bool) -> None:
    """Leave the terminal to the bar and the table: the libraries' notes say nothing a user can act on. Ours do."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        ours = logging.getLogger("transformer2")
        ours.setLevel(logging.INFO)
        ours.handlers = [_Notes()]
    importlib.import_module("lightning.pytorch")  # sets the levels below when it is imported, so it goes first
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Kernels that are not here, the cast of every product in 8 bits, each retry of a download, prompts that we refuse.
    tokenizers = "transformers.tokenization_utils_base"
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree", "huggingface_hub", tokenizers):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is_gradient_checkpointing.*",
        ".*in eval mode at the start of training.*",
        ".*logging interval.*",
        ".*No positive class.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*use torch.distributed.* instead.*",
        ".*Please use `torch.distributed.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # what is logged has been summed over ranks already
        ".*When saving the DeepSpeed Stage 3 checkpoint.*",
        ".*Total length of .list. across ranks is zero.*",  # a fit on shots has nothing to validate with
    ):
        warnings.filterwarnings("ignore", message=message)
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which accelerate imports, says so on stdout
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
