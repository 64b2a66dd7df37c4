"""Optimizer and learning rate: our schedules, what a pair was built with, and a resumed run's own rate.

`model.optimizer` and `model.lr_scheduler` are Lightning's `OptimizerCallable` (parameters -> optimizer) and
`LRSchedulerCallable` (optimizer -> schedule). A pair built over one number says what they are, however written.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from transformer2.arguments import OPTIMIZER_RANGES, Count, NotNegativeInt, check_arguments, expected, fits, written
from transformer2.errors import ConfigError

__all__ = ["Warmup", "WarmupCosine", "build", "restart", "settings"]

# Of a scheduler's attributes: where it stands, not what it was built with.
POSITION = ("base_lrs", "last_epoch", "verbose")


class Warmup(LambdaLR):
    """Linear warm-up, then a constant rate.

    Args:
        optimizer: What it schedules.
        warmup_steps: Steps below the full rate.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: NotNegativeInt = 0) -> None:
        check_arguments("model.lr_scheduler", Warmup.__init__, locals())
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, lambda step: self.factor(step))

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))

    def state_dict(self) -> dict[str, Any]:
        """Its position; the settings are each run's own."""
        return {k: v for k, v in super().state_dict().items() if k not in ("warmup_steps", "total_steps")}


class WarmupCosine(Warmup):
    """Linear warm-up under a cosine that decays to 0.

    Args:
        optimizer: What it schedules.
        warmup_steps: Steps below the full rate.
        total_steps: Where it reaches 0; None takes the end of the run.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: NotNegativeInt = 0, total_steps: Count | None = None
    ) -> None:
        check_arguments("model.lr_scheduler", WarmupCosine.__init__, locals())
        self.total_steps: float | None = total_steps
        super().__init__(optimizer, warmup_steps)

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step."""
        progress = min(1.0, step / max(1.0, math.inf if self.total_steps is None else self.total_steps))
        return super().factor(step) * (0.5 * (1 + math.cos(math.pi * progress)))


def settings(optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable) -> dict[str, Any]:
    """What the two build, as keys of a config and plain values: `model.optimizer`, `model.optimizer.lr`, ...

    Raises:
        ConfigError: They build nothing, or what this module cannot train with.
    """
    try:
        built = optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as e:
        raise ConfigError(f"model.optimizer cannot be built: {e}") from e
    closure = inspect.signature(type(built).step).parameters.get("closure")
    if isinstance(built, torch.optim.SparseAdam) or (closure and closure.default is closure.empty):
        raise ConfigError(
            f"model.optimizer {type(built).__name__} needs sparse gradients or a closure that evaluates the loss "
            "again; use one such as AdamW"
        )
    try:
        scheduler = lr_scheduler(built)
    except (TypeError, ValueError, KeyError) as e:  # of an optimizer without an lr
        raise ConfigError(f"model.lr_scheduler cannot be built: {e}") from e
    if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
        raise ConfigError(
            f"model.lr_scheduler {type(scheduler).__name__} waits for a metric; use one that follows the steps alone"
        )
    for name, hint in OPTIMIZER_RANGES.items():
        if name in built.defaults and not fits(hint, built.defaults[name]):
            value = written(built.defaults[name])
            raise ConfigError(f"model.optimizer.{name} must be {expected(hint)}, not {value}")
    # OneCycleLR and others keep their settings in the optimizer's groups.
    of_groups = {k: v for k, v in built.param_groups[0].items() if k not in ("params", "initial_lr", *built.defaults)}
    of_scheduler = {k: v for k, v in vars(scheduler).items() if k not in POSITION and not k.startswith("_")} | of_groups
    plain = bool | int | float | str | list | tuple | None
    found: dict[str, Any] = {"model.optimizer": _name(built), "model.lr_scheduler": _name(scheduler)}
    found |= {f"model.optimizer.{k}": v for k, v in built.defaults.items() if isinstance(v, plain)}
    return found | {
        f"model.lr_scheduler.{k}": v for k, v in of_scheduler.items() if isinstance(v, plain) and k != "lr_lambdas"
    }


def _name(built: Optimizer | LRScheduler) -> str:
    """The name of its class; the whole path of a third party's, which may have the name of another."""
    kind = type(built)
    ours = kind.__module__.startswith(("torch.", "transformer2."))
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def build(
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable,
    parameters: Iterable[torch.nn.Parameter],
    total_steps: float,
) -> tuple[Optimizer, LRScheduler]:
    """An optimizer over parameters, and its schedule over a run of so many steps."""
    built = optimizer(parameters)
    scheduler = lr_scheduler(built)
    assert isinstance(scheduler, LRScheduler), "`settings` has seen to that"
    if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
        scheduler.total_steps = total_steps
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < total_steps:
        raise ConfigError(
            f"model.lr_scheduler.total_steps {scheduler.total_steps} ends before the run, which has "
            f"{total_steps:.0f} steps"
        )
    return built, scheduler


def restart(optimizer: Optimizer, scheduler: LRScheduler, fresh: Optimizer, schedule: LRScheduler) -> None:
    """Put a run's own settings in the place of those that a checkpoint brought with it.

    Args:
        optimizer: The one in use; its moments stay.
        scheduler: The one in use; its position stays.
        fresh: An optimizer of this run at its first step, with one group of parameters.
        schedule: Its scheduler, which is moved on to the position.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it steps without its optimizer
        for _ in range(scheduler.last_epoch):
            schedule.step()
    scheduler.load_state_dict(schedule.state_dict())
    own = {key: value for key, value in fresh.param_groups[0].items() if key != "params"}
    for group in optimizer.param_groups:
        group.update(own)
