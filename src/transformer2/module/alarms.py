"""Warnings, once each, of a training run that learns nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from transformer2.module.collapse import Collapse
from transformer2.report.notes import CUT_REMEDY, MOST, most_common
from transformer2.types import Verdict

FLAT_STEPS_TO_WARN_OF = 3
MISMATCH_TO_WARN_OF = 0.1  # nats a token; bf16 kernels of other libraries differ by some hundredths


@dataclass
class Alarms:
    """Checks every step. The fields are plain values: its state in a checkpoint (`asdict`).

    Attributes:
        steps: Steps seen.
        flat_steps: Those that had no signal: equal rewards, or none.
        flat_in_a_row: How many of them were the last.
        said: What was warned of, and is not again.
        collapse: What it has seen of a collapse.
    """

    steps: int = 0
    flat_steps: int = 0
    flat_in_a_row: int = 0
    said: list[str] = field(default_factory=list)
    collapse: Collapse = field(default_factory=Collapse)

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Alarms:
        """Those of a checkpoint, so that a resumed run reports as the uncut one; older checkpoints hold none."""
        return cls(**{**state, "collapse": Collapse(**state["collapse"])}) if state else cls()

    def check(self, step: int, metrics: Mapping[str, float], grouped: bool, verdicts: Sequence[Verdict]) -> None:
        """Warn of what is wrong with a step.

        Args:
            step: Its number.
            metrics: What it logged.
            grouped: Whether the baseline is of the completions of one prompt: no signal if those are all equal.
            verdicts: On the completions of this rank.
        """
        flat = bool(metrics["reward/zero_std"]) or (grouped and metrics["reward/equal_groups"] == 1)
        self.steps += 1
        self.flat_steps += flat
        self.flat_in_a_row = self.flat_in_a_row + 1 if flat else 0
        if self.flat_in_a_row == FLAT_STEPS_TO_WARN_OF:
            self._once("flat", step, _without_signal(metrics["train/reward"], verdicts))
        for words in self.collapse.update(step, metrics):
            rank_zero_warn(f"step {step}: {words}")
        if (cut := 1 - metrics["train/finished"]) >= MOST and not self.collapse.ended_at_first:
            self._once("cut", step, f"{cut:.0%} of the completions were cut off; {CUT_REMEDY}")
        if (off := metrics.get("rollout/mismatch", 0.0)) > MISMATCH_TO_WARN_OF:
            self._once(
                "mismatch",
                step,
                f"the sampler's log-probabilities are {off:.2f} nats a token off. With vLLM: does the server hold this "
                "base, and was it started as docs/rollouts.md says? Else: model.loss.importance_cap 2.0 corrects for "
                "the rounding of merged weights, model.memory.merge_rollouts false avoids it",
            )

    def notes(self, expert_step: int | None = None) -> list[str]:
        """What a report says of the training: that it collapsed, or that most steps had no signal.

        Args:
            expert_step: The step whose expert is scored, where it is known.
        """
        collapsed = self.collapse.note(expert_step)
        lines = [] if collapsed is None else [collapsed]
        if self.steps and self.flat_steps >= MOST * self.steps:
            what = "training steps had nothing to learn from (equal rewards, or none)"
            lines.append(f"{self.flat_steps} of {self.steps} {what}")
        return lines

    def _once(self, about: str, step: int, text: str) -> None:
        if about not in self.said:
            self.said.append(about)
            rank_zero_warn(f"step {step}: {text}")


def _without_signal(reward: float, verdicts: Sequence[Verdict]) -> str:
    """What happened, and what to look at."""
    if math.isnan(reward):
        what, why = "no completion got a reward", "why does the task's verifier abstain?"
    elif abs(reward) < 1:
        what, why = "all completions of a prompt got the same reward", "is model.sampling.temperature too low?"
    else:
        hard = "too hard" if reward < 0 else "too easy"
        what = f"every reward was {reward:+g}"
        why = f"is the task {hard} for this model, are answers cut off or in another form than the verifier reads, "
        why += "is model.sampling.temperature right?"
    found = sum(v.extracted is not None for v in verdicts)
    return (
        f"{FLAT_STEPS_TO_WARN_OF} steps in a row had nothing to learn from: {what}. Verdicts: "
        f"{most_common(v.reason for v in verdicts)}; an answer was found in {found} of {len(verdicts)} completions. "
        f"Look at the samples in TensorBoard: {why}"
    )
