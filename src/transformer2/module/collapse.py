"""Signs that a policy has collapsed: it is certain of wrong answers, no longer ends them, or has left the base.

Each is held against the first step, when nothing was trained yet. The thresholds (docs/training.md has figures of runs
on either side of them):

    entropy   a tenth of the first step's, with fewer than 90 % right. Learning lowers entropy, too: a policy that is
              certain and right is done, one that is certain and wrong samples the same answers for ever.
    length    half of the completions cut off, where the first step cut off a quarter at most. A budget that is too
              small shows from the start, and is another alarm's (alarms.py).
    KL        1 nat a token to the base, and no more answers right than at first. Distance alone is no sign: an expert
              that learns to answer in one word is 2 to 4 nats away from a base that writes sentences.

A sign must hold for three steps in a row; the KL (measured every tenth step without a penalty) at its last measurement,
with the answers of three steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

__all__ = ["Collapse"]

STEPS = 3
CERTAIN, RIGHT = 0.1, 0.9
CUT, CUT_AT_FIRST = 0.5, 0.25
FAR = 1.0  # nats a token
MORE = 0.1  # of the answers: what batches differ by
REMEDY = "lower model.optimizer.lr or raise model.loss.kl_coef"
LONGER = "or, if longer answers are better ones, raise model.sampling.max_new_tokens"
WATCHED = ("train/entropy", "train/accuracy", "train/finished")


@dataclass
class Collapse:
    """Looks at every step. The fields are plain values: its state in a checkpoint.

    Attributes:
        since: Sign (`entropy`, `length`, `KL`) -> the step at which it was first seen, of all that were.
        words: Sign -> what was wrong then.
        first: The watched metrics of the first step.
        last: Those of the last three steps.
        kl: The KL as it was last measured.
    """

    since: dict[str, int] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    last: list[dict[str, float]] = field(default_factory=list)
    kl: float = math.nan

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take in a step; returns a line for each sign that was never seen before."""
        now = {name: float(metrics[name]) for name in WATCHED}
        self.first = self.first or now
        self.last = [*self.last[1 - STEPS :], now]
        self.kl = float(metrics.get("train/kl", self.kl))
        new = {sign: words for sign, words in self.current_signs.items() if sign not in self.since}
        self.since |= dict.fromkeys(new, step)
        self.words |= new
        return [f"{words}; {_remedy([sign])}" for sign, words in new.items()]

    @property
    def ended_at_first(self) -> bool:
        """Whether the completions of the first step ended by themselves, but for a quarter."""
        return self.first.get("train/finished", 0.0) >= 1 - CUT_AT_FIRST

    @property
    def current_signs(self) -> dict[str, str]:
        """Sign -> what is wrong now; comparisons with what was not measured (NaN) are false."""
        if not self.last:
            return {}
        first, now, found = self.first, self.last[-1], {}
        lasting = len(self.last) == STEPS
        certain = (
            s["train/entropy"] < CERTAIN * first["train/entropy"] and s["train/accuracy"] < RIGHT for s in self.last
        )
        if lasting and all(certain):
            found["entropy"] = (
                f"the entropy fell from {first['train/entropy']:.2g} to {now['train/entropy']:.2g} nats a token with "
                f"{now['train/accuracy']:.0%} of the answers right"
            )
        cut = (s["train/finished"] <= 1 - CUT for s in self.last)
        if lasting and self.ended_at_first and all(cut):
            found["length"] = (
                f"completions run to the limit: {now['train/finished']:.0%} of them end by themselves, "
                f"{first['train/finished']:.0%} did at first"
            )
        right = sum(s["train/accuracy"] for s in self.last) / len(self.last)
        if self.kl > FAR and right <= first["train/accuracy"] + MORE:
            found["KL"] = (
                f"the KL to the base is {self.kl:.2g} nats a token with {right:.0%} of the answers right, "
                f"{first['train/accuracy']:.0%} were at first"
            )
        return found

    def note(self, expert_step: int | None = None) -> str | None:
        """The line that a report says of it; None where no sign was seen.

        Args:
            expert_step: The step whose expert is scored; None where that is not known.
        """
        if not self.since:
            return None
        current = self.current_signs
        what = [
            f"at step {step} {self.words[sign]}{'' if sign in current else ' (no longer at the end)'}"
            for sign, step in self.since.items()
        ]
        kept = "" if expert_step is None else f"; the expert is of step {expert_step}"
        return f"TRAINING COLLAPSED: {'; '.join(what)}{kept}; {_remedy(self.since)}"


def _remedy(signs: Collection[str]) -> str:
    return f"{REMEDY}, {LONGER}" if [*signs] == ["length"] else REMEDY
