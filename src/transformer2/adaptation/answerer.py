"""What answers prompts and verifies the answers: in training, validation, test and every adaptation alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from transformer2.rl.logprobs import Head
from transformer2.rollout.base import RolloutEngine, Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.rows import has_rows
from transformer2.tasks import Task
from transformer2.types import Answer, PromptBatch, Rollouts, Verdict
from transformer2.verifiers import stop_if_unverified, verify_all

__all__ = ["Answerer"]


@dataclass(frozen=True)
class Answerer:
    """A policy with a task to answer, in one process of several.

    Attributes:
        policy: The model with its adapters.
        task: What verifies answers.
        engine: Draws rows of different z.
        sampler: Draws completions under one z; `engine` where that is the same.
        head: Hidden states -> logits.
        max_new_tokens: Completion budget.
        rank: This process.
        world_size: Number of processes.
        gather: The objects of all ranks, in rank order.
        total: Sums of counts over all ranks.
    """

    policy: PeftModel
    task: Task
    engine: HFEngine
    sampler: RolloutEngine
    head: Head
    max_new_tokens: int
    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = lambda mine: [mine]
    total: Callable[[list[int]], list[int]] = list

    @property
    def device(self) -> torch.device:
        """Where prompts have to be."""
        return self.policy.device

    def sample(self, prompts: PromptBatch, temperature: float = 0.0, seed: int = 0) -> Rollouts:
        """Completions under whatever is active: an adapter, the base, or a z for each row."""
        engine = self.engine if has_rows(self.policy) else self.sampler
        return engine.generate(self.policy, prompts, Sampling(temperature, max_new_tokens=self.max_new_tokens), seed)

    def verify(self, rollouts: Rollouts) -> list[Verdict]:
        """One verdict per completion. Every rank must call it equally often.

        Raises:
            UserError: Over 5 % of the completions of all ranks could not be verified.
        """
        verdicts = verify_all(self.task, rollouts.examples, rollouts.completions)
        self.stop_if_unverified(verdicts)
        return verdicts

    def stop_if_unverified(self, verdicts: list[Verdict]) -> None:
        """Count failures over all ranks, which must decide alike; see `verifiers.stop_if_unverified`."""
        stop_if_unverified(verdicts, *self.total([sum(v.is_failure for v in verdicts), len(verdicts)]))

    def verified(self, rollouts: Rollouts) -> list[Answer]:
        """The completions with their verdicts."""
        verdicts = self.verify(rollouts)
        rows = zip(rollouts.completions, rollouts.finished_B.tolist(), verdicts, strict=True)
        return [Answer(*row) for row in rows]

    def answer(self, prompts: PromptBatch) -> list[Answer]:
        """Greedy answers under whatever is active, with their verdicts: what every accuracy is of."""
        return self.verified(self.sample(prompts))

    def count_samples(self, prompts: PromptBatch, count: int, temperature: float, seed: int) -> list[tuple[int, int]]:
        """Of `count` samples of each prompt, how many are right and how many have a verdict."""
        verdicts = self.verify(self.sample(prompts.repeat(count), temperature, seed))
        groups = [[v for v in verdicts[i : i + count] if v.reward is not None] for i in range(0, len(verdicts), count)]
        return [(sum(v.correct for v in group), len(group)) for group in groups]
