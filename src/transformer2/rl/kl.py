"""KL between the policy pi and the base model pi_0, per token of a sampled completion.

    full          sum_v pi(v) (log pi(v) - log pi_0(v))       KL(pi || pi_0), the paper's penalty
    full_reverse  sum_v pi_0(v) (log pi_0(v) - log pi(v))     KL(pi_0 || pi), what the reference code computes
    k1            log pi(y) - log pi_0(y)                     unbiased value; as a loss its expected gradient is ZERO,
                                                              so it is only ever subtracted from the reward
    k2            (log pi(y) - log pi_0(y))^2 / 2             expected gradient = that of KL(pi || pi_0)
    k3            exp(-k1) + k1 - 1                           expected gradient = that of KL(pi_0 || pi)

(k1, k2, k3 as in J. Schulman, "Approximating KL divergence", 2020; their gradients are checked in tests/rl.)

Departure from the equation: the states (prefixes) are the sampled ones and are not differentiated through; the gradient
is of the per-token KL on visited prefixes, which is what every implementation of this penalty optimises.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

KL = Literal["full", "full_reverse", "k1", "k2", "k3"]


def full_kl(logprobs_NV: Tensor, ref_logprobs_NV: Tensor, *, reverse: bool = False) -> Tensor:
    """KL over the whole vocabulary, nats per token.

    Args:
        logprobs_NV: log pi, fp32 (N, V).
        ref_logprobs_NV: log pi_0, fp32 (N, V).
        reverse: False for KL(pi || pi_0), True for KL(pi_0 || pi).

    Returns:
        fp32 (N,), non-negative up to rounding.
    """
    p_NV, q_NV = (ref_logprobs_NV, logprobs_NV) if reverse else (logprobs_NV, ref_logprobs_NV)
    probs_NV = p_NV.exp()
    # 0 log 0 = 0: a masked vocabulary entry has logit -inf under both models, and -inf + inf is NaN.
    return (probs_NV * (p_NV - q_NV).masked_fill(probs_NV == 0, 0.0)).sum(-1)


def sampled_kl(logprobs_N: Tensor, ref_logprobs_N: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL estimate from the sampled tokens alone, nats per token.

    Args:
        logprobs_N: log pi(y_t), fp32 (N,).
        ref_logprobs_N: log pi_0(y_t), fp32 (N,).
        kind: See the module docstring.

    Returns:
        fp32 (N,); k1 is detached, because its gradient would be noise around zero.
    """
    ratio_N = logprobs_N - ref_logprobs_N
    if kind == "k1":
        return ratio_N.detach()
    if kind == "k2":
        return 0.5 * ratio_N.square()
    return (-ratio_N).exp() + ratio_N - 1
