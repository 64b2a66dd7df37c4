"""One optimizer step on one batch of rollouts, as benchmarks time it: ours for any adapter, and the reference's.

A step is what the module does with rollouts: hidden states, log-probabilities of the sampled tokens, REINFORCE loss,
backward, AdamW. With a KL ours runs the same model with its adapter off, the reference its second model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _reference import RecomposedLinear, recompose_all
from torch import Tensor, nn

from transformer2.module.scores import score
from transformer2.policy import lm_head
from transformer2.rl.kl import full_kl
from transformer2.rl.loss import reinforce_loss
from transformer2.types import Rollouts

__all__ = ["KL_COEF", "forward_of", "reference_step_of", "step_of"]

KL_COEF = 0.2


def forward_of(policy: Any, batch: Rollouts, advantages_B: Tensor, kl_coef: float) -> Callable[[], Tensor]:
    """The loss of a batch, with its graph."""
    head = lm_head(policy)

    def forward() -> Tensor:
        logprobs_N, kl_N, _ = score(policy, head, batch, kl="full" if kl_coef else None)
        mask_BC = batch.completion_mask_BC
        return reinforce_loss(logprobs_N, kl_N, mask_BC, advantages_B, kl_coef=kl_coef, num_rows=len(batch))

    return forward


def step_of(policy: Any, batch: Rollouts, advantages_B: Tensor, kl_coef: float) -> Callable[[], None]:
    """Forward, backward, AdamW."""
    forward = forward_of(policy, batch, advantages_B, kl_coef)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reference_step_of(
    model: nn.Module, layers: list[RecomposedLinear], base: nn.Module, batch: Rollouts, advantages_B: Tensor
) -> Callable[[], None]:
    """The same by the reference's algorithm.

    Args:
        model: The policy, with `layers` in it.
        layers: Its tuned layers (`_reference.recomposed`).
        base: The second model, for the KL.
        batch: Completions of one length.
        advantages_B: One per row.
    """
    optimizer = torch.optim.AdamW([layer.z_R for layer in layers], lr=1e-6)
    prompt = batch.prompt_ids_BP.shape[1]

    def step() -> None:
        recompose_all(layers)
        for i in range(len(batch)):
            ids_1T = torch.cat([batch.prompt_ids_BP[i], batch.completion_ids_BC[i]])[None]
            all_CV = model(input_ids=ids_1T, use_cache=False).logits[0, prompt - 1 : -1].log_softmax(-1)
            with torch.no_grad():
                ref_CV = base(input_ids=ids_1T, use_cache=False).logits[0, prompt - 1 : -1].log_softmax(-1)
            logprob = all_CV.gather(-1, batch.completion_ids_BC[i][:, None]).sum()
            kl = full_kl(all_CV, ref_CV).sum()
            ((KL_COEF * kl - advantages_B[i] * logprob) / len(batch)).backward()
        for layer in layers:
            layer.backward_to_z()
        optimizer.step()
        optimizer.zero_grad()

    return step
