"""Which of Lightning's strategies training runs under."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from transformer2.errors import ConfigError


def check_strategy(strategy: Strategy) -> None:
    """Refuse what training has not been seen to run under.

    Raises:
        ConfigError: With the names of what works.
    """
    popen = isinstance(strategy, DDPStrategy) and strategy._start_method == "popen"
    if not isinstance(strategy, SingleDeviceStrategy) and (not popen or isinstance(strategy, DeepSpeedStrategy)):
        raise ConfigError(f"fit does not run under {type(strategy).__name__}; use trainer.strategy: ddp, or devices: 1")


def gather_objects(mine: Any) -> list[Any]:
    """The objects of all ranks, in rank order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
