"""Sampled tokens under a policy and its base: log-probabilities, KL, entropy."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from transformer2.policy import checkpointed, completion_states, hidden_states, reference
from transformer2.rl.kl import KL
from transformer2.rl.logprobs import Head, TokenScores, chunk_tokens, score_tokens
from transformer2.rollout.shared import Shared, select_rows, shared_part
from transformer2.types import Rollouts
from transformer2.vision import positions


def predicting_states(policy: Any, rollouts: Rollouts, share: bool = False) -> Tensor:
    """Hidden states that predict the sampled tokens, packed: (N, D), row-major over `completion_mask_BC`.

    Args:
        policy: The model.
        rollouts: Of the policy.
        share: Run once what the prompts have in common, where that is much of them (see rollout/probe.py: `can_share`).
    """
    if share and rollouts.completion_ids_BC.shape[1]:  # else no row has a token that counts
        before = rollouts.prompt_ids_BP[:, :-1], rollouts.prompt_mask_BP[:, :-1]  # the last token predicts one as well
        if (shared := shared_part(*before, columns=rollouts.completion_ids_BC.shape[1])) is not None:
            ids_BC = torch.cat([rollouts.prompt_ids_BP[:, -1:], rollouts.completion_ids_BC[:, :-1]], dim=1)
            mask_BC = torch.cat([rollouts.prompt_mask_BP[:, -1:], rollouts.completion_mask_BC[:, :-1]], dim=1)
            return states_after(policy, shared, ids_BC, mask_BC)[rollouts.completion_mask_BC.bool()]
    r = rollouts
    return completion_states(policy, r.prompt_ids_BP, r.prompt_mask_BP, r.completion_ids_BC, r.completion_mask_BC)


def states_after(policy: Any, shared: Shared, ids_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """Hidden states (B, C, D) of tokens that follow prompts: beginning, rests and rows, one pass each."""
    cache = DynamicCache(config=policy.config)
    begins = shared.beginning_1K.shape[1]
    positions_UP = positions(policy, shared.ids_UP, shared.mask_UP)
    if begins:
        hidden_states(
            policy, shared.beginning_1K, torch.ones_like(shared.beginning_1K), cache, positions_UP[:1, :begins]
        )
        select_rows(cache, torch.zeros(len(shared.rest_UR), dtype=torch.long, device=ids_BC.device))
    hidden_states(policy, shared.rest_UR, shared.mask_UP, cache, positions_UP[:, begins:])
    select_rows(cache, shared.prompt_B)
    after_BC = mask_BC.cumsum(-1)
    after_BC = after_BC if positions_UP.dim() == 2 else after_BC[..., None]
    mask_BT = torch.cat([shared.mask_UP[shared.prompt_B], mask_BC], dim=1)
    return hidden_states(policy, ids_BC, mask_BT, cache, positions_UP[shared.prompt_B, -1:] + after_BC)


def score(
    policy: Any,
    head: Head,
    rollouts: Rollouts,
    kl: KL | None = None,
    temperature: float = 1.0,
    recompute: bool = False,
    share: bool = False,
) -> TokenScores:
    """Score the N sampled tokens of rollouts.

    Args:
        policy: The model.
        head: Hidden states -> logits.
        rollouts: Of the policy.
        kl: Which KL to the base (rl/kl.py); None saves its forward pass, and the KL is 0.
        temperature: The sampling temperature; greedy tokens are scored at 1.
        recompute: Compute activations again in the backward pass rather than keep them.
        share: Run once what the prompts have in common; not with `recompute`, which keeps no cache.
    """
    ref_hidden_ND = None
    if kl is not None:
        with torch.no_grad(), reference(policy):
            ref_hidden_ND = predicting_states(policy, rollouts, share)
    with checkpointed(policy) if recompute else nullcontext():
        hidden_ND = predicting_states(policy, rollouts, share and not recompute)
    return score_tokens(
        hidden_ND,
        rollouts.completion_ids_BC[rollouts.completion_mask_BC.bool()],
        head,
        ref_hidden_ND,
        kl=kl or "full",
        temperature=temperature or 1.0,
        chunk=chunk_tokens(policy.config.get_text_config().vocab_size),
    )
