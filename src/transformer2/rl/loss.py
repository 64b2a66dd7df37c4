"""REINFORCE with a KL penalty (paper, section 3.2, equation 1).

    J(z) = E_y~pi [ A(y) log pi(y|x) ] - lambda KL(pi || pi_0),    log pi(y|x) = sum_t log pi(y_t | x, y_<t)
    loss = -(1 / B) sum_b [ A_b sum_t w_bt log pi_bt - lambda sum_t KL_bt ]

What it is not: no ratio to an older policy, no clipping, no replay: every rollout was sampled after the last optimizer
step. A sampler with kernels of its own (vLLM) is still another policy by a little: w_bt, 1 without
`importance_weights`.
`num_rows` is the number of rows of the whole global batch, so that micro-batches add up to the loss of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_by_row(values_N: Tensor, mask_BC: Tensor) -> Tensor:
    """Sums of packed token values per row.

    Args:
        values_N: fp32 (N,), one value per 1 of the mask, in row-major order.
        mask_BC: (B, C), 1 on sampled tokens.

    Returns:
        fp32 (B,); 0 for a row without tokens.
    """
    rows_N = mask_BC.nonzero()[:, 0]
    return torch.zeros(len(mask_BC), dtype=values_N.dtype, device=values_N.device).index_add(0, rows_N, values_N)


def importance_weights(logprobs_N: Tensor, sampler_logprobs_N: Tensor, cap: float) -> Tensor:
    """min(pi / mu, cap) of each token, a constant: pi is trained, mu has sampled.

    E_mu[(pi / mu) f] = E_pi[f]; the cap bounds the variance (truncated importance sampling, Ionides 2008).

    Args:
        logprobs_N: log pi, fp32 (N,).
        sampler_logprobs_N: log mu, fp32 (N,).
        cap: Largest weight.
    """
    return (logprobs_N.detach() - sampler_logprobs_N).exp().clamp(max=cap)


def reinforce_loss(
    logprobs_N: Tensor,
    kl_N: Tensor,
    mask_BC: Tensor,
    advantages_B: Tensor,
    *,
    kl_coef: float,
    num_rows: int,
    weights_N: Tensor | None = None,
    kl_in_reward: bool = False,
) -> Tensor:
    """The loss of one micro-batch.

    Args:
        logprobs_N: log pi of the sampled tokens, EOS included, fp32 (N,): one for every 1 of the mask, row-major.
        kl_N: KL of the same tokens, fp32 (N,).
        mask_BC: (B, C), 1 on sampled tokens.
        advantages_B: fp32 (B,), constants.
        kl_coef: lambda.
        num_rows: Rows of the whole global batch, the divisor.
        weights_N: Importance weights of the tokens, constants (`importance_weights`); None is 1.
        kl_in_reward: Take lambda * KL off each row's reward instead of adding it to the loss: the only correct use of
            k1 (rl/kl.py). It enters after the baseline, which leaves the expected gradient as it is.

    Returns:
        A scalar.
    """
    weighted_B = sum_by_row(logprobs_N if weights_N is None else weights_N * logprobs_N, mask_BC)
    kl_B = sum_by_row(kl_N, mask_BC)
    if kl_in_reward:
        advantages_B = advantages_B - kl_coef * kl_B
    policy = -(advantages_B.detach() * weighted_B).sum() / num_rows
    return policy if kl_in_reward else policy + kl_coef * (kl_B.sum() / num_rows)
