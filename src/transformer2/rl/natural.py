"""The natural gradient of z, from the Fisher information of a step's own completions.

    u = (F + delta 1)^-1 g,   F = S^T S / B,   delta = damping tr(F) / B,   S_b = d log pi(y_b | x_b) / d z

g is the gradient of the loss. With loss = -(1 / B) sum_b A_b log pi_b, a step z - u changes log pi_b by about A_b: in
every direction the policy changes by what was learned there, however sensitive it is to z in it, and directions that
it is sensitive to do not oscillate. F has rank B at most, so B equations are solved rather than Z:

    u = (g - S^T (S S^T + B delta 1)^-1 S g) / delta

Sources: natural policy gradients (Kakade 2001); as B equations, minSR (Chen & Heyl, arXiv 2302.01941). What makes it
cheap here is SVF: with one z per row of the batch (svf/rows.py) the rows' own gradients cost no more than their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor


def natural_gradient(gradient_Z: Tensor, scores_BZ: Tensor, damping: float) -> Tensor:
    """The gradient divided by the damped Fisher information, fp32 (Z,).

    Args:
        gradient_Z: g, fp32 (Z,).
        scores_BZ: S, the gradients of the rows' log-probabilities, fp32 (B, Z).
        damping: Of the mean row; large is the plain gradient on another scale.
    """
    gram_BB = scores_BZ @ scores_BZ.T
    rows, norms_B = len(scores_BZ), gram_BB.diagonal()
    if not norms_B.any():  # no row has a token that depends on z
        return gradient_Z
    norm = norms_B[norms_B > 0].mean()  # rows that the loss leaves out do not make the others' steps longer
    damped_BB = gram_BB + damping * norm * torch.eye(rows, dtype=gram_BB.dtype, device=gram_BB.device)
    seen_Z = scores_BZ.T @ torch.linalg.solve(damped_BB, scores_BZ @ gradient_Z)
    return (gradient_Z - seen_Z) * (rows / (damping * norm))
