"""`plan`: what fits and how long it takes, before anything is downloaded or loaded; and the check that `fit` makes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer2.cli.compose import compose, parse_flags
from transformer2.errors import ConfigError, nearest

if TYPE_CHECKING:
    from transformer2.plan.job import Strategy

KEYS = ("name", "seed_everything", "model", "data", "trainer")
OPTIONS = ("gpus", "gpu_memory", "nodes", "device", "quantisation", "prompt_tokens", "mean_completion")

HELP = """\
usage: transformer2 plan --config FILE [--gpus N] [--gpu-memory GB] [--nodes M] [--KEY.SUB VALUE ...]

What a training run needs per device, part by part, for every strategy, from the model's config alone; the first change
that would make it fit; seconds and bytes on the wire of a step. Works offline for the shapes of Llama 3, Mistral and
Qwen2.5, and for any local folder with a config.json.

  --config FILE          as for fit; any key can follow as a flag
  --gpus N               devices of a node (default 1)
  --gpu-memory GB        memory of one (default 24). GB = 1e9 bytes: what a "24 GB" card has beyond that, 7 %, is left
                         to the driver's context and to fragmentation
  --nodes M              nodes (default 1)
  --device NAME          {devices}: whose figures the seconds use (default: by memory)
  --quantisation KIND    none, int8 or nf4, instead of what the config says
  --prompt_tokens N      longest prompt (default 256)
  --mean_completion N    mean completion, for the seconds (default: half of the budget)
  --explain              print every term of the chosen strategy as formula = numbers = value
"""


def plan(args: Sequence[str]) -> int:
    """Print the table over strategies."""
    given = [word.replace("-", "_").replace("__", "--", 1) if word.startswith("--gpu-") else word for word in args]
    flags = parse_flags(given, OPTIONS, ("help", "explain"), KEYS)
    if "help" in flags.switches or "-h" in given:
        from transformer2.plan.seconds import DEVICES

        print(HELP.format(devices=", ".join(DEVICES)), end="")
        return 0
    if not flags.configs:
        raise ConfigError("plan needs --config; try --config conf/llama8b_gsm8k.yaml")
    config = compose(flags.configs, flags.overrides, KEYS)

    from transformer2.plan.advice import make_plan
    from transformer2.plan.job import job_of
    from transformer2.plan.seconds import DEVICES, device_for
    from transformer2.plan.table import explanation, plan_table
    from transformer2.plan.terms import total

    numbers = {name: _number(name, flags.options[name]) for name in OPTIONS if name in flags.options and name not in (
        "device", "quantisation")}  # fmt: skip
    memory = numbers.get("gpu_memory", 24.0)
    name = flags.options.get("device")
    if name is not None and name not in DEVICES:
        raise ConfigError(f"unknown --device {name!r}{nearest(name, DEVICES)} Known: {', '.join(DEVICES)}")
    device = DEVICES[name] if name else device_for(memory)
    packed = flags.options.get("quantisation")
    if packed not in (None, "none", "int8", "nf4"):
        raise ConfigError(f"--quantisation {packed!r} is not one of none, int8, nf4")
    gpus, nodes = int(numbers.get("gpus", 1)), int(numbers.get("nodes", 1))
    job = job_of(
        *sections(config),
        gpus=gpus,
        nodes=nodes,
        prompt_tokens=int(numbers["prompt_tokens"]) if "prompt_tokens" in numbers else None,
        mean_completion=numbers.get("mean_completion"),
        quantisation=packed,  # type: ignore[arg-type]  # checked above
    )
    plans = [make_plan(job.with_(strategy=s), memory * 1e9, device) for s in strategies(gpus * nodes)]
    wanted = strategy_of(config.get("trainer") or {})
    chosen = next((p for p in plans if p.job.strategy == wanted), None)
    fitting = [p for p in plans if p.fits] or [p for p in plans if p.advised] or plans
    chosen = chosen or min(fitting, key=lambda p: total(p.seconds))
    print(plan_table(plans, chosen, device))
    if "explain" in flags.switches:
        print(f"\n{explanation(chosen)}")
    return 0


def strategies(ranks: int) -> tuple[Strategy, ...]:
    """Those that make sense on so many devices."""
    return ("single", "zero3_offload") if ranks == 1 else ("single", "ddp", "zero2", "zero3", "zero3_offload")


def strategy_of(trainer: Mapping[str, Any]) -> Strategy | None:
    """What `trainer.strategy` asks for, in the planner's words; None where it leaves the choice."""
    asked = trainer.get("strategy")
    text = str(asked).lower()
    options = asked.get("init_args") or {} if isinstance(asked, Mapping) else {}
    if "deepspeed" in text:
        stage = options.get("stage", 3 if "stage_3" in text else 2)
        offloaded = "offload" in text and options.get("offload_parameters", True)
        return ("zero3_offload" if offloaded else "zero3") if stage == 3 else "zero2"
    return "ddp" if "ddp" in text else None


def sections(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model` and `data` of a composed config, completed with their defaults.

    Raises:
        ConfigError: A key that the constructor does not take.
    """
    from transformer2.data import ExpertDataModule
    from transformer2.module import SVFReinforceModule

    return _complete("model", SVFReinforceModule, config), _complete("data", ExpertDataModule, config)


def _complete(section: str, cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get(section) or {}
    parameters = inspect.signature(cls).parameters
    for key in given:
        if key not in parameters:
            raise ConfigError(f"unknown config key {section}.{key}{nearest(key, parameters)}")
    return {name: p.default for name, p in parameters.items()} | dict(given)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0 or (name in ("gpus", "nodes") and not value.is_integer()):
        raise ConfigError(f"--{name} takes a positive number, not {text!r}")
    return value


# ------------------------------------------------------------------ fit's own check


def preflight(model: Mapping[str, Any], data: Mapping[str, Any], device: Any, prompt_tokens: int) -> None:
    """Refuse a run that cannot fit the device, with the first change that would.

    Args:
        model: Arguments of SVFReinforceModule.
        data: Arguments of ExpertDataModule.
        device: The torch device of training.
        prompt_tokens: Longest prompt of the data.

    Raises:
        ConfigError: It does not fit.
    """
    from transformer2.errors import UserError
    from transformer2.plan.advice import advise, changes
    from transformer2.plan.job import job_of
    from transformer2.plan.memory import memory

    available = available_bytes(device)
    try:
        job = job_of(model, data, prompt_tokens=prompt_tokens)
    except UserError:
        return  # what cannot be planned (another kind of adapter, an unknown base) is not refused for that
    needed = memory(job).peak
    if available is None or needed <= available or not job.shape.counted:
        return
    advised = advise(job, available)
    remedy = f"use {' '.join(changes(job, advised))}" if advised else "use a larger device or a smaller model"
    raise ConfigError(
        f"this run needs about {needed / 1e9:.1f} GB on {device} and {available / 1e9:.1f} GB are there; {remedy} "
        "(`transformer2 plan` shows the parts; --no_preflight tries all the same)"
    )


def available_bytes(device: Any) -> float | None:
    """What a process may take on a device: free memory of the GPU, available memory of the machine or its cgroup."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return 0.95 * free  # the allocator's fragments
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
        return float(free)
    except (OSError, StopIteration, ValueError):
        pages = getattr(os, "sysconf", lambda name: -1)("SC_PHYS_PAGES") if hasattr(os, "sysconf") else -1
        return float(pages * os.sysconf("SC_PAGE_SIZE")) if pages > 0 else None
