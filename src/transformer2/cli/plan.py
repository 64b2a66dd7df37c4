"""`plan`: what fits and how long it takes, before anything is downloaded or loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from transformer2.cli.check import check
from transformer2.cli.compose import compose, flags_of
from transformer2.cli.keys import KEYS, TRAINER_DEFAULTS
from transformer2.cli.schema import value_of
from transformer2.cli.values import number, one_of
from transformer2.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from transformer2.plan.job import Job, Strategy


HELP = """\
usage: transformer2 plan --config FILE [--gpus N] [--gpu_memory GB] [--nodes M] [--KEY.SUB VALUE ...]

What a training run needs per device, part by part, for every strategy, from the model's config alone; the first change
that would make it fit; seconds and bytes on the wire of a step, hours of the run (without validations). Works offline
for the shapes of Llama 3, Mistral and Qwen2.5, and for any local folder with a config.json.

  --config FILE          as for fit; any key can follow as a flag
  --gpus N               devices of a node (default 1)
  --gpu_memory GB        memory of one (default 24). GB = 1e9 bytes: what a "24 GB" card has beyond that, 7 %, is left
                         to the driver's context and to fragmentation
  --nodes M              nodes (default 1)
  --device NAME          {devices}: whose figures the seconds use (default: by memory)
  --prompt_tokens N      longest prompt (default 256)
  --mean_completion N    mean completion, for the seconds (default: half of the budget)
  --explain              print every term of the chosen strategy as formula = numbers = value
"""


def plan(args: Sequence[str]) -> int:
    """Print the table over strategies."""
    devices = get_args(value_of("transformer2.plan.seconds.DeviceName"))
    flags = flags_of(args, HELP.format(devices=", ".join(devices)), KEYS)
    if not flags.configs:
        raise ConfigError("plan needs --config; try --config conf/llama8b_gsm8k.yaml")
    given = flags.options
    memory = number(given, "gpu_memory", 24.0, 0.001, 1e6)
    gpus, nodes = number(given, "gpus", 1, 1, 10**6), number(given, "nodes", 1, 1, 10**6)
    tokens = number(given, "prompt_tokens", None, 1, 10**6), number(given, "mean_completion", None, 0.001, 1e6)
    if "device" in given:
        one_of("--device", given["device"], devices)
    config = compose(flags.configs, flags.overrides, KEYS)
    check(config, "plan")

    from transformer2.data import ExpertDataModule
    from transformer2.module import SVFReinforceModule
    from transformer2.plan.advice import Plan
    from transformer2.plan.job import job_of, strategy_of
    from transformer2.plan.seconds import DEVICES, device_for
    from transformer2.plan.table import explanation, plan_table
    from transformer2.plan.terms import total
    from transformer2.policy import adapter_config

    adapter_config(config["model"].get("adapter") or {})  # PEFT checks the keys of its own methods
    device = DEVICES.get(given.get("device", ""), device_for(memory))
    model, data = complete(SVFReinforceModule, config["model"]), complete(ExpertDataModule, config["data"])
    job = job_of(model, data, "single", gpus, nodes, *tokens)
    plans = [Plan(job.with_(strategy=s), memory * 1e9, device) for s in strategies(job)]
    wanted = strategy_of(config["trainer"])
    fitting = [p for p in plans if p.fits] or [p for p in plans if p.advised] or plans
    fastest = min(fitting, key=lambda p: total(p.seconds))
    chosen = next((p for p in plans if p.job.strategy == wanted), fastest)
    steps = {**TRAINER_DEFAULTS, **config["trainer"]}["max_steps"]
    print(plan_table(plans, chosen, steps if steps > 0 else None))
    if steps < 0:
        print("hours: not known, since epochs or time end the run (no rows are read here); --trainer.max_steps N says")
    if "explain" in flags.switches:
        print(f"\n{explanation(chosen)}")
    return 0


def strategies(job: Job) -> tuple[Strategy, ...]:
    """Those that make sense for a job; ZeRO-3 shards dense weights only, and torchao's stay in a process."""
    alone, packed = job.gpus * job.nodes == 1, job.quantisation
    if alone or (packed and packed.method == "torchao"):
        return ("single",) if packed else ("single", "zero3_offload")
    return ("single", "ddp", "zero2") if packed else ("single", "ddp", "zero2", "zero3", "zero3_offload")


def complete(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a constructor, defaults included, and groups as mappings."""
    defaults: dict[str, Any] = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    groups = {
        key: asdict(replace(v, **given.get(key, {})))
        for key, v in defaults.items()
        if is_dataclass(v) and not isinstance(v, type)
    }
    return {**defaults, **given, **groups}


def check_memory(job: Job, device: torch.device) -> None:
    """Refuse a job that a device has no room for, as far as that is known.

    Raises:
        ConfigError: The message says the first change that would make it fit.
    """
    from transformer2.plan.advice import advise, changes
    from transformer2.plan.memory import memory

    needed, available = memory(job).peak, available_bytes(device)
    if available is not None and device.type != "cuda":
        available /= job.gpus  # processes of one machine share its memory
    if available is None or needed <= available or not job.shape.counted:
        return
    advised = advise(job, available)
    remedy = f"use {' '.join(changes(job, advised))}" if advised else "use a larger device or a smaller model"
    raise ConfigError(
        f"this run needs about {needed / 1e9:.1f} GB on {device} and {available / 1e9:.1f} GB are there; {remedy} "
        "(`transformer2 plan` shows the parts; --no_preflight tries all the same)"
    )


def available_bytes(device: torch.device) -> float | None:
    """What a device has to give: a GPU's free memory, else the machine's or its cgroup's; None where unknown."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return 0.95 * free  # the allocator's fragments
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # not Linux
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    return float(free)
