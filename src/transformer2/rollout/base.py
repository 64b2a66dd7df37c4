"""What every rollout engine offers, and how sampling is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from transformer2.errors import ConfigError, UserError
from transformer2.rollout.ending import Ending
from transformer2.svf.rows import has_rows
from transformer2.types import PromptBatch, Rollouts
from transformer2.vision.tokens import FIRST

EngineName = Literal["hf", "paged", "vllm"]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: 1 samples from the policy itself; 0 is greedy.
        top_p: Nucleus mass in (0, 1]. Training wants 1: the loss knows the full distribution only.
        max_new_tokens: Completion budget, EOS included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_new_tokens >= 1):  # NaN is none of it
            raise ConfigError(f"{self} cannot be sampled: need temperature >= 0, 0 < top_p <= 1, max_new_tokens >= 1")


class RolloutEngine(Ending, ABC):
    """Draws completions. Ids and masks in the result are what was sampled, EOS included."""

    @abstractmethod
    def generate(self, policy: nn.Module, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """One completion per row, under the adapter active in `policy`.

        Args:
            policy: The model with its adapters (a PeftModel; HFEngine takes any transformers causal LM, and z rows).
            prompts: B left-padded prompts.
            sampling: Temperature, nucleus and budget.
            seed: A row's randomness depends on (seed, its number over all ranks), not on the batch it is generated in;
                PagedEngine alone draws one stream for all rows.
        """

    def sync(self, policy: nn.Module) -> None:  # most engines draw from the policy itself
        """Bring a sampler that has weights of its own to the policy's z; `generate` does so too, this can be timed."""

    def packed(
        self, prompts: PromptBatch, ids: Sequence[list[int]], logprobs: Sequence[list[float]] | None = None
    ) -> Rollouts:
        """Rollouts of B lists of ids, EOS included, and of the sampler's log-probabilities, where it says them."""
        like = prompts.input_ids_BP
        rows = [like.new_tensor(tokens) for tokens in ids]
        ids_BC = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        count_B = like.new_tensor([len(tokens) for tokens in ids])
        said = None if logprobs is None else [torch.tensor(values) for values in logprobs]
        logprobs_BC = None if said is None else pad_sequence(said, batch_first=True).to(like.device)
        return self._rollouts(prompts, ids_BC, count_B, logprobs_BC)

    def _rollouts(
        self, prompts: PromptBatch, ids_BC: Tensor, count_B: Tensor, logprobs_BC: Tensor | None = None
    ) -> Rollouts:
        """Rollouts of right-padded sampled ids, of which the first `count_B` of each row count."""
        rows = zip(ids_BC.tolist(), count_B.tolist(), strict=True)
        texts = self.texts([ids[:n] for ids, n in rows])
        stopped_B = torch.zeros_like(count_B, dtype=torch.bool)
        for b in [b for b, text in enumerate(texts) if self.holds_stop(text)]:
            # An engine may draw on past a stop string; what it drew before is the same.
            count_B[b], texts[b] = self.up_to_stop(ids_BC[b, : count_B[b]].tolist())
            ids_BC[b, count_B[b] :], stopped_B[b] = self.pad_id, True
        width = int(count_B.max())
        ids_BC = ids_BC[:, :width]
        mask_BC = (torch.arange(width, device=ids_BC.device) < count_B[:, None]).long()
        last_B = ids_BC.gather(1, (count_B - 1).clamp(min=0)[:, None])[:, 0]
        finished_B = stopped_B | torch.isin(last_B, torch.tensor(self.eos_ids, device=ids_BC.device))
        return Rollouts(
            prompts.examples,
            prompts.input_ids_BP,
            prompts.attention_mask_BP,
            ids_BC,
            mask_BC,
            tuple(
                opening + text
                for opening, text in zip(openings(self.tokenizer, prompts.input_ids_BP), texts, strict=True)
            ),
            finished_B,
            None if logprobs_BC is None else logprobs_BC[:, :width].where(mask_BC.bool(), 0.0),
        )


def openings(tokenizer: PreTrainedTokenizerBase, input_ids_BP: Tensor) -> list[str]:
    """`<think>` for each prompt that ends on it, as some templates do: a thought that is cut off is no answer."""
    ends_BE = input_ids_BP[:, -len("<think>\n\n") :]
    ends_BE = ends_BE.masked_fill(ends_BE >= FIRST, 0)  # ids of pictures are not the tokenizer's
    return ["<think>" if end.rstrip().endswith("<think>") else "" for end in tokenizer.batch_decode(ends_BE)]


def check_no_rows(policy: nn.Module) -> None:
    """For engines that draw under one z.

    Raises:
        UserError: The policy is inside `z_rows`.
    """
    if has_rows(policy):
        raise UserError("this engine has one z for all rows; rows of different z need model.rollout: hf")


def prompt_ids(prompts: PromptBatch) -> list[list[int]]:
    """The B prompts without padding."""
    rows = zip(prompts.input_ids_BP.tolist(), prompts.attention_mask_BP.sum(-1).tolist(), strict=True)
    return [ids[len(ids) - n :] for ids, n in rows]


def uniforms(prompts: PromptBatch, budget: int, seed: int) -> Tensor:
    """One number in [0, 1) for every row and token, (B, budget), on the CPU."""
    rows = list(prompts.row_ids or range(len(prompts)))
    return torch.rand((1 + max(rows), budget), generator=torch.Generator().manual_seed(seed))[rows]
