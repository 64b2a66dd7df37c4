"""What is measured of a run: the seconds of a step, its sums as means, and the learning curve."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from transformer2.rl.advantages import equal_groups
from transformer2.rl.step import Step
from transformer2.types import Verdict

TIMED = ("weight_sync", "rollout", "verify", "logprobs", "backward", "sync")


class StepMeter:
    """Wall-clock seconds of the parts of one optimizer step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside. On a GPU these are launch times unless the work ends in a host read."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """The seconds since it was last read, as metrics."""
        seconds = {f"time/{name}": self.seconds[name] for name in TIMED}
        self.seconds.clear()
        return seconds


@dataclass
class LearningCurve:
    """Validation accuracy against steps and the seconds spent in them; validations and tests are not counted.

    The fields are plain values: its state in a checkpoint.

    Attributes:
        seconds: Wall-clock seconds of all steps so far, of this process.
        cpu_seconds: CPU seconds of them, of all its threads.
        points: `step`, `accuracy`, `se`, `seconds` and `cpu_seconds` of each validation, that before step 1 too.
        before: The same of validations that do not compare with those: of other questions, or judged otherwise.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)
    before: list[dict[str, float]] = field(default_factory=list)

    @property
    def validations(self) -> int:
        """How many there were, that before step 1 not counted."""
        return sum(point["step"] > 0 for point in (*self.before, *self.points))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of a step."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def add(self, step: int, accuracy: float, se: float) -> None:
        """A validation after `step` steps."""
        spent = {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}
        self.points.append({"step": step, "accuracy": round(accuracy, 6), "se": round(se, 6), **spent})

    def restart(self) -> None:
        """What follows does not compare with the validations so far."""
        self.before, self.points = self.before + self.points, []


def verdict_sums(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """What verdicts add to a step: `Step.abstained` and `Step.credit`."""
    scores = [v.score for v in verdicts if v.reward is not None]
    credit = sum(math.nan if score is None else score for score in scores)
    return float(sum(v.abstained for v in verdicts)), float(credit)


def step_metrics(step: Step, rewards_B: Tensor | None, group_size: int) -> dict[str, float]:
    """The metrics of a step of all ranks; what was not measured is left out.

    Args:
        step: The step.
        rewards_B: fp32 (B,) of the whole batch; NaN marks a row without one. None: nothing was sampled.
        group_size: Completions per prompt.
    """
    metrics = {
        "train/loss": step.loss,
        "train/entropy": step.per_token(step.entropy),
        "train/completion_length": step.sampled / step.rows,
    }
    if rewards_B is not None:
        metrics |= _of_rewards(step, rewards_B, group_size)
    measured = {
        "train/kl": step.per_token(step.kl),  # nats per token
        "rollout/mismatch": step.per_token(step.mismatch),  # |log pi - log mu|, nats per token
        "rollout/capped": step.per_token(step.capped),  # share of tokens whose weight met the cap
    }
    return metrics | {name: value for name, value in measured.items() if math.isfinite(value)}


def _of_rewards(step: Step, rewards_B: Tensor, group_size: int) -> dict[str, float]:
    rewarded_B = rewards_B[~rewards_B.isnan()]
    soft = len(rewarded_B) > 0 and math.isfinite(step.credit)
    metrics = {
        "train/reward": float(rewards_B.nanmean()),
        "train/accuracy": step.credit / len(rewarded_B) if soft else float((rewarded_B > 0).float().mean()),
        "train/finished": step.finished / step.rows,
        "reward/zero_std": float(len(rewards_B) > 1 and equal_groups(rewards_B, len(rewards_B)) == 1),
        "reward/infra_errors": len(rewards_B) - len(rewarded_B) - step.abstained,
        "reward/abstained": step.abstained,
        "reward/truncated": step.rows - step.finished,
    }
    if group_size > 1:
        metrics["reward/equal_groups"] = equal_groups(rewards_B, group_size)
    return metrics
