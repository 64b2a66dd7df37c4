"""Batches of prompts. Which prompts make up a step follows from (seed, step) alone: a resumed run draws what the uncut
one would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace

import torch

from transformer2.data.prompts import collate
from transformer2.errors import ConfigError
from transformer2.seeds import seed_at
from transformer2.types import Example, PromptBatch


def batches_within(loader: Sized, limit: int | float) -> int:
    """How many batches Lightning's `limit_..._batches` leaves: a number of them, or a share of all."""
    return min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)


class PromptLoader:
    """A sized loader of PromptBatches over rendered prompts, shared evenly among ranks.

    Args:
        examples: The questions.
        ids: Their token ids.
        pad_id: Fills the left of shorter prompts.
        batch_size: Prompts of one batch over all ranks.
        shuffle_seed: Seed of the order, a new one each epoch; None keeps the order and the last, smaller batch.
        rank: This process.
        world_size: Number of processes.
        solutions: Token ids of the prompts' solutions, where these are trained on.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        ids: Sequence[Sequence[int]],
        pad_id: int,
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        solutions: Sequence[Sequence[int]] = (),
    ) -> None:
        if shuffle_seed is not None and len(examples) < batch_size:
            raise ConfigError(f"data.batch_size {batch_size} exceeds the {len(examples)} prompts; lower it")
        if len(examples) < world_size:
            raise ConfigError(f"{len(examples)} prompts are too few for {world_size} processes; use fewer")
        self.examples, self.ids, self.pad_id = examples, ids, pad_id
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.rank, self.world_size, self.solutions = rank, world_size, solutions
        self.batches_seen = 0

    def __len__(self) -> int:
        n, b = len(self.examples), self.batch_size
        if self.shuffle_seed is not None:
            return n // b
        return max(1, n // b + (n % b >= self.world_size))  # every rank has a row of every batch: see __iter__

    def prompts_in(self, batches: int) -> int:
        """How many prompts the first batches of an epoch hold."""
        return len(self.examples) if batches >= len(self) else batches * self.batch_size

    def __iter__(self) -> Iterator[PromptBatch]:
        first = self.batches_seen % len(self) if self.shuffle_seed is not None else 0
        for i in range(first, len(self)):
            # What is left at the end and would not reach every rank is answered with the batch before it.
            last = self.shuffle_seed is None and i == len(self) - 1
            end = None if last else (i + 1) * self.batch_size
            rows = self._order(self.batches_seen // len(self))[i * self.batch_size : end]
            if self.shuffle_seed is not None:
                self.batches_seen += 1
            mine = range(self.rank, len(rows), self.world_size)
            positions = [rows[j] for j in mine]
            examples, ids = [self.examples[p] for p in positions], [self.ids[p] for p in positions]
            batch = collate(examples, ids, self.pad_id, mine, positions)
            yield replace(batch, solutions=tuple(self.solutions[p] for p in positions)) if self.solutions else batch

    def _order(self, epoch: int) -> list[int]:
        if self.shuffle_seed is None:
            return list(range(len(self.examples)))
        generator = torch.Generator().manual_seed(seed_at(self.shuffle_seed, epoch))
        return torch.randperm(len(self.examples), generator=generator).tolist()

    def state_dict(self) -> dict[str, int]:
        """The position, for Lightning's checkpoint."""
        return {"batches_seen": self.batches_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the checkpoint was written."""
        self.batches_seen = state["batches_seen"]
