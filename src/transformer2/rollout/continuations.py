"""log p of a few short continuations after each prompt, with every prompt run once.

    log p(c | prompt) = sum_t log p(c_t | prompt, c_<t)

The pass over the prompts (prefill.py) gives the first token of every continuation; then each continuation has a row of
the prompt's cache for itself and is fed token by token, as a completion is. So whatever HFEngine draws from is scored,
state-space models included, whose caches take one token at a time. A row leaves at the end of its continuation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from transformer2.halving import run_or_halve
from transformer2.rollout.hf import HFEngine, check_finite
from transformer2.rollout.prefill import next_logits, prefill
from transformer2.svf.rows import batch_rows
from transformer2.types import PromptBatch

__all__ = ["continuation_logprobs"]


@torch.no_grad()
def continuation_logprobs(
    engine: HFEngine, policy: nn.Module, prompts: PromptBatch, continuations: Sequence[Sequence[int]]
) -> Tensor:
    """Score the same N continuations after every prompt, under whatever is active: an adapter or the rows of `z_rows`.

    Args:
        engine: Whose `max_rows` bounds prompts x continuations of one pass; lowered where memory does not suffice.
        policy: The model.
        prompts: B prompts.
        continuations: N lists of one token id or more, an EOS included where it is to count.

    Returns:
        Sums of token log-probabilities, fp32 (B, N).

    Raises:
        ConfigError: The model cannot be decoded from a cache.
        UserError: A logit is not finite, or one prompt does not fit into memory.
    """
    device, b, n = prompts.input_ids_BP.device, len(prompts), len(continuations)
    engine.check(policy, device)
    ids_NC = pad_sequence([torch.tensor(ids, device=device) for ids in continuations], batch_first=True)
    length_N = torch.tensor([len(ids) for ids in continuations], device=device)

    def score(rows: Tensor) -> Tensor:
        width = int(prompts.attention_mask_BP[rows].sum(-1).max())
        ids_bP, mask_bP = prompts.input_ids_BP[rows][:, -width:], prompts.attention_mask_BP[rows][:, -width:]
        logits_bV, cache, _, position_b1 = prefill(policy, ids_bP, mask_bP, lambda part: select(rows[part]))
        check_finite(logits_bV, rows, prompts)
        sums_bN = logits_bV.log_softmax(-1)[:, ids_NC[:, 0]]
        # R rows of (prompt, continuation), and the row of the cache that each continues.
        prompt_R, of_R = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(n)).to(device).T
        cached_R = prompt_R
        for t in range(1, ids_NC.shape[1]):
            longer_R = length_N[of_R] > t
            prompt_R, of_R, cached_R = prompt_R[longer_R], of_R[longer_R], cached_R[longer_R]
            if t == 1 or not bool(longer_R.all()):
                cache.reorder_cache(cached_R)  # also to more rows: the one selection that every kind of layer has
                select(rows[prompt_R])
            mask_RT = torch.cat([mask_bP[prompt_R], mask_bP.new_ones(len(prompt_R), t)], dim=-1)
            logits_RV = next_logits(policy, ids_NC[of_R, t - 1, None], mask_RT, position_b1[prompt_R] + t, cache)
            check_finite(logits_RV, rows[prompt_R], prompts)
            sums_bN[prompt_R, of_R] += logits_RV.log_softmax(-1).gather(-1, ids_NC[of_R, t, None])[:, 0]
            cached_R = torch.arange(len(prompt_R), device=device)
        return sums_bN

    at_once = b if engine.max_rows is None else max(1, engine.max_rows // n)
    with batch_rows(policy, b) as select:
        pieces, fitting = run_or_halve(score, torch.arange(b, device=device), "lower adapt.max_rows", at_once=at_once)
    if fitting is not None:
        engine.max_rows = fitting * n
    return torch.cat(pieces)
