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
from typing import Any

__all__ = ["Collapse"]

STEPS = 3
CERTAIN, RIGHT = 0.1, 0.9
CUT, CUT_AT_FIRST = 0.5, 0.25
FAR = 1.0  # nats a token
MORE = 0.1  # of the answers: what batches differ by
REMEDY = "lower model.optimizer.lr or raise model.loss.kl_coef"
LONGER = "or, if longer answers are better ones, raise model.sampling.max_new_tokens"
WATCHED = ("train/entropy", "train/accuracy", "train/finished")


class Collapse:
    """Looks at every step.

    Attributes:
        standing: What is wrong now, in words, by sign: `entropy`, `length`, `KL`.
        since: The step at which each sign was first seen, of all that were.
    """

    def __init__(self) -> None:
        self.standing: dict[str, str] = {}
        self.since: dict[str, int] = {}
        self._words: dict[str, str] = {}
        self._first: dict[str, float] = {}
        self._last: list[dict[str, float]] = []
        self._kl = math.nan

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take in a step; returns the signs that were never seen before, in words."""
        now = {name: float(metrics[name]) for name in WATCHED}
        self._first = self._first or now
        self._last = [*self._last[1 - STEPS :], now]
        self._kl = float(metrics.get("train/kl", self._kl))
        self.standing = self._signs()
        new = [sign for sign in self.standing if sign not in self.since]
        self.since |= dict.fromkeys(new, step)
        self._words |= {sign: self.standing[sign] for sign in new}
        return [f"{self.standing[sign]}; {_remedy([sign])}" for sign in new]

    @property
    def ended_at_first(self) -> bool:
        """Whether the completions of the first step ended by themselves, but for a quarter."""
        return self._first.get("train/finished", 0.0) >= 1 - CUT_AT_FIRST

    def _signs(self) -> dict[str, str]:
        """Comparisons with what was not measured (NaN) are false."""
        first, now, found = self._first, self._last[-1], {}
        lasting = len(self._last) == STEPS
        certain = (
            s["train/entropy"] < CERTAIN * first["train/entropy"] and s["train/accuracy"] < RIGHT for s in self._last
        )
        if lasting and all(certain):
            found["entropy"] = (
                f"the entropy fell from {first['train/entropy']:.2g} to {now['train/entropy']:.2g} nats a token with "
                f"{now['train/accuracy']:.0%} of the answers right"
            )
        cut = (s["train/finished"] <= 1 - CUT for s in self._last)
        if lasting and self.ended_at_first and all(cut):
            found["length"] = (
                f"completions run to the limit: {now['train/finished']:.0%} of them end by themselves, "
                f"{first['train/finished']:.0%} did at first"
            )
        right = sum(s["train/accuracy"] for s in self._last) / len(self._last)
        if self._kl > FAR and right <= first["train/accuracy"] + MORE:
            found["KL"] = (
                f"the KL to the base is {self._kl:.2g} nats a token with {right:.0%} of the answers right, "
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
        what = [
            f"at step {step} {self._words[sign]}{'' if sign in self.standing else ' (no longer at the end)'}"
            for sign, step in self.since.items()
        ]
        kept = "" if expert_step is None else f"; the expert is of step {expert_step}"
        return f"TRAINING COLLAPSED: {'; '.join(what)}{kept}; {_remedy(self.since)}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for resume."""
        return {"since": self.since, "words": self._words, "first": self._first, "last": self._last, "kl": self._kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.since, self._words, self._first = (dict(state[key]) for key in ("since", "words", "first"))
        self._last, self._kl = list(state["last"]), state["kl"]
        self.standing = self._signs() if self._last else {}


def _remedy(signs: Collection[str]) -> str:
    return f"{REMEDY}, {LONGER}" if [*signs] == ["length"] else REMEDY
