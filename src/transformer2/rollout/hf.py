"""Batched generation with a transformers model: the engine that runs everywhere.

Departures from `model.generate`, each measured in benchmarks/:
    1. Rows that have finished leave the batch (the KV cache is compacted), so a long straggler costs one row, not B.
    2. Prompts are sorted by length, so that a batch split by `max_rows` pads little.
    3. A row's random numbers are drawn up front from (seed, row): the same completion comes out whatever the batch it
       shares, dropped rows and splits included (up to the rounding of batched matrix products).
    4. Sampling inverts the cumulative distribution at one uniform number per token.
    5. A non-finite logit is an error that names the prompt, not a device assert.
    6. Out of memory halves the rows generated at a time, for the rest of the run, and draws the same completions.
    7. Prompts run a few rows at a time, what they have in common once, and only as far as the first token needs:
       prefill.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from contextvars import Context
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from transformer2.errors import UserError
from transformer2.halving import run_or_halve
from transformer2.rollout.base import RolloutEngine, Sampling, uniforms
from transformer2.rollout.prefill import next_logits, prefill
from transformer2.rollout.probe import can_share, check_decoding
from transformer2.rollout.shared import shared_part
from transformer2.svf.modes import merged_for_rollout
from transformer2.svf.rows import batch_rows, has_rows
from transformer2.types import PromptBatch, Rollouts

COMPACT_BELOW = 0.8  # compact once the live rows are fewer than this share of the batch: copying the cache is not free

_shares: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # of models that were tried


class HFEngine(RolloutEngine):
    """Batched sampling through the model's own forward.

    Args:
        tokenizer: See RolloutEngine.
        eos_ids: See RolloutEngine.
        max_rows: Rows generated at a time; None takes the whole batch. Halved when memory does not suffice.
        lockstep: Says on every rank whether something is so on some rank. Given, all ranks run equally many forward
            passes, as weights that are sharded among them need: a rank that is done runs idle passes, and none halves
            its rows alone.
        merge: Draw under weights into which the active z is composed, where that is possible: the base model's speed.
        stop: See RolloutEngine.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Iterable[int],
        max_rows: int | None = None,
        lockstep: Callable[[bool], bool] | None = None,
        merge: bool = False,
        stop: Iterable[str | int] = (),
    ) -> None:
        super().__init__(tokenizer, eos_ids, stop)
        self.max_rows, self.merge = max_rows, merge
        self.in_lockstep, self.on_any_rank = lockstep is not None, lockstep or bool

    def check(self, policy: nn.Module, device: torch.device) -> None:
        """Try the policy's cache and masks, once per model (see probe.py); `generate` does so too.

        Raises:
            ConfigError: This engine would draw another model's completions.
        """
        if policy not in _shares:
            # In a context of its own: the probe's rows are not those of an open `z_rows`.
            Context().run(check_decoding, policy, device, whole=self.in_lockstep)
            _shares[policy] = not self.in_lockstep and Context().run(can_share, policy, device)

    @torch.no_grad()
    def generate(self, policy: nn.Module, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """See `RolloutEngine.generate`."""
        self.check(policy, prompts.input_ids_BP.device)
        b = len(prompts)
        uniforms_BC = uniforms(prompts, sampling.max_new_tokens, seed).to(prompts.input_ids_BP.device)
        ids_BC = prompts.input_ids_BP.new_full((b, sampling.max_new_tokens), self.pad_id)
        count_B = prompts.attention_mask_BP.new_zeros(b)
        logprobs_BC = torch.zeros(ids_BC.shape, device=ids_BC.device)
        longest_first = torch.argsort(prompts.attention_mask_BP.sum(-1), descending=True, stable=True)
        anyone = longest_first[:1]

        def draw(rows: Tensor, idle: bool = False) -> None:
            if not idle:  # of an attempt that ran out of memory
                ids_BC[rows], count_B[rows] = self.pad_id, 0
            for t, alive, token, logprob in self._decode(
                policy, prompts, rows, ids_BC, uniforms_BC, sampling, select, share, idle
            ):
                ids_BC[alive, t], logprobs_BC[alive, t] = token, logprob
                count_B[alive] += 1

        share = _shares[policy] and not has_rows(policy)
        weights = merged_for_rollout(policy, self._tokens(prompts, sampling, share)) if self.merge else nullcontext()
        with weights, batch_rows(policy, b) as select:
            while self.on_any_rank(len(longest_first) > 0):
                rows, longest_first = longest_first.tensor_split([self.max_rows or b])
                if self.in_lockstep:
                    draw(rows if len(rows) else anyone, idle=not len(rows))
                else:
                    _, fitting = run_or_halve(draw, rows, "lower model.memory.max_rollout_rows, or adapt.max_rows")
                    self.max_rows = fitting or self.max_rows
        return self._rollouts(prompts, ids_BC, count_B, logprobs_BC)

    def _tokens(self, prompts: PromptBatch, sampling: Sampling, share: bool) -> int:
        """Tokens that a call runs at most."""
        shared = shared_part(prompts.input_ids_BP, prompts.attention_mask_BP) if share else None
        asked = int(prompts.attention_mask_BP.sum()) if shared is None else shared.tokens
        return asked + len(prompts) * sampling.max_new_tokens

    def _decode(
        self,
        policy: nn.Module,
        prompts: PromptBatch,
        rows: Tensor,
        ids_BC: Tensor,
        uniforms_BC: Tensor,
        sampling: Sampling,
        select: Callable[[Tensor], None],
        share: bool,
        idle: bool,
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yields, for each step t, the rows that sampled a token, their tokens, EOS included, and log-probabilities.

        `ids_BC` is where the caller writes the tokens down: stop strings are looked for in it.
        """
        width = int(prompts.attention_mask_BP[rows].sum(-1).max())
        ids, mask = prompts.input_ids_BP[rows][:, -width:], prompts.attention_mask_BP[rows][:, -width:]
        eos = torch.tensor(self.eos_ids, device=mask.device)
        done = torch.full((len(rows),), idle, device=mask.device)
        logits_BV, cache, mask, position_B1 = prefill(
            policy, ids, mask, lambda part: select(rows[part]), self.in_lockstep, share
        )
        for t in range(sampling.max_new_tokens):
            check_finite(logits_BV, rows, prompts)
            token, logprob = choose_tokens(logits_BV, uniforms_BC[rows, t], sampling)
            token = token.masked_fill(done, self.pad_id)
            yield t, rows[~done], token[~done], logprob[~done]
            done = done | torch.isin(token, eos)
            if self.stop:
                done = done | self.stopped(ids_BC[rows, : t + 1])
            live = int((~done).sum())
            if not self.on_any_rank(live > 0) or t + 1 == sampling.max_new_tokens:
                return
            position_B1 = position_B1 + 1
            if live < COMPACT_BELOW * len(rows):
                keep = (~done).nonzero()[:, 0] if live else torch.zeros_like(rows[:1])  # an idle one
                cache.reorder_cache(keep)  # of fewer rows: the one selection that every kind of layer has
                rows, token, done, mask, position_B1 = (x[keep] for x in (rows, token, done, mask, position_B1))
                select(rows)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            logits_BV = next_logits(policy, token[:, None], mask, position_B1, cache)


def check_finite(logits_BV: Tensor, rows: Tensor, prompts: PromptBatch) -> None:
    """Refuse logits that say nothing, row b of which are of prompt rows[b].

    Raises:
        UserError: Some are not finite; the message names the prompt.
    """
    # max propagates NaN and +inf; entries of -inf (masked vocabulary) are fine.
    sane_B = torch.isfinite(logits_BV.amax(-1))
    if not bool(sane_B.all()):
        prompt = prompts.examples[int(rows[~sane_B][0])].id
        raise UserError(
            f"the model gave non-finite logits for prompt {prompt!r}; "
            "the adapter or the base is damaged, or training diverged: lower model.optimizer.lr or use fp32"
        )


def choose_tokens(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row: greedy at temperature 0, else by inverting the cumulative distribution.

    Returns:
        Tokens (B,), and their log-probabilities fp32 (B,); at temperature 0 those of temperature 1.
    """
    if sampling.temperature < 1e-6:  # a smaller one would overflow
        token_B = logits_BV.argmax(-1)
        return token_B, logits_BV.gather(-1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
    probs_BV = (logits_BV / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        probs_BV = _nucleus(probs_BV, sampling.top_p)
    cumulative_BV = probs_BV.cumsum(-1)
    mass_B1 = cumulative_BV[:, -1:]
    targets_B1 = uniforms_B[:, None] * mass_B1
    token_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
    return token_B1[:, 0], (probs_BV.gather(-1, token_B1) / mass_B1).log()[:, 0]


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches `top_p`."""
    sorted_BV, index_BV = probs_BV.sort(-1, descending=True)
    # A token stays if the mass before it is below top_p: the first one always does.
    sorted_BV = sorted_BV.masked_fill(sorted_BV.cumsum(-1) - sorted_BV >= top_p, 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, index_BV, sorted_BV)
