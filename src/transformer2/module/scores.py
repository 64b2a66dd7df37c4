"""What a policy and its base say of sampled tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transformer2.policy import checkpointed, completion_states, reference
from transformer2.rl.kl import KL
from transformer2.rl.logprobs import Head, TokenScores, chunk_tokens, score_tokens
from transformer2.types import Rollouts


def predicting_states(policy: Any, rollouts: Rollouts) -> Tensor:
    """Hidden states that predict the sampled tokens, packed: (N, D), row-major over `completion_mask_BC`."""
    r = rollouts
    return completion_states(policy, r.prompt_ids_BP, r.prompt_mask_BP, r.completion_ids_BC, r.completion_mask_BC)


def score(
    policy: Any,
    head: Head,
    rollouts: Rollouts,
    kl: KL | None = None,
    temperature: float = 1.0,
    recompute: bool = False,
) -> TokenScores:
    """Score the N sampled tokens of rollouts.

    Args:
        policy: The model.
        head: Hidden states -> logits.
        rollouts: Of the policy.
        kl: Which KL to the base (rl/kl.py); None saves its forward pass, and the KL is 0.
        temperature: The sampling temperature; greedy tokens are scored at 1.
        recompute: Compute activations again in the backward pass rather than keep them.
    """
    ref_hidden_ND = None
    if kl is not None:
        with torch.no_grad(), reference(policy):
            ref_hidden_ND = predicting_states(policy, rollouts)
    with checkpointed(policy, recompute):
        hidden_ND = predicting_states(policy, rollouts)
    return score_tokens(
        hidden_ND,
        rollouts.completion_ids_BC[rollouts.completion_mask_BC.bool()],
        head,
        ref_hidden_ND,
        kl=kl or "full",
        temperature=temperature or 1.0,
        chunk=chunk_tokens(policy.config.get_text_config().vocab_size),
    )
