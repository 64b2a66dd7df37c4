"""Log-probabilities, KL and entropy of sampled tokens, in checkpointed chunks.

    logprobs_t = log softmax(head(h_t) / temperature)[y_t]

The logits of a sequence are the largest tensor of the step (vocabulary x tokens): they exist here for one chunk of
tokens at a time and are computed again in the backward pass (torch.utils.checkpoint), never whole and never kept.
Padding is dropped before the head runs: N counts sampled tokens only.

Departures from the reference code: it keeps full log-probs of both models (5-6 x the logits) and scores re-tokenised
text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from transformer2.rl.kl import KL, full_kl, sampled_kl

Head = Callable[[Tensor], Tensor]

MIN_CHUNK_TOKENS = 64
CHUNK_ELEMENTS = 2**21  # 8 MB of fp32 logits: small vocabularies get long chunks, so that chunking costs them nothing


class TokenScores(NamedTuple):
    """Per sampled token, all fp32 (N,): log pi, KL to the base (0 without a reference), entropy of pi in nats."""

    logprobs_N: Tensor
    kl_N: Tensor
    entropy_N: Tensor


def chunk_tokens(vocab_size: int) -> int:
    """Tokens per chunk for a vocabulary: at least 64, more where the vocabulary is small."""
    return max(MIN_CHUNK_TOKENS, CHUNK_ELEMENTS // vocab_size)


def score_tokens(
    hidden_ND: Tensor,
    token_ids_N: Tensor,
    head: Head,
    ref_hidden_ND: Tensor | None = None,
    *,
    kl: KL = "full",
    temperature: float = 1.0,
    chunk: int,
) -> TokenScores:
    """Score sampled tokens under the policy and, if given, the base model.

    Args:
        hidden_ND: Last hidden states of the policy at the positions that predict the tokens.
        token_ids_N: int64, the tokens as sampled.
        head: Hidden states (n, D) -> logits (n, V); the same head for both models (lm_head is never tuned).
        ref_hidden_ND: The base model's hidden states at the same positions; None scores without KL.
        kl: Which KL (see rl/kl.py).
        temperature: The sampling temperature: the policy that acted is the tempered one.
        chunk: Tokens per chunk, see `chunk_tokens`.
    """
    if not len(token_ids_N):
        empty = hidden_ND.float().sum(-1)  # (0,), and a gradient of zeros: ranks in lockstep all run backward
        return TokenScores(empty, empty.detach(), empty.detach())
    grad = torch.is_grad_enabled() and hidden_ND.requires_grad
    # split, not slices: a slice's gradient is a whole (N, D) of zeros.
    hiddens, ids = hidden_ND.split(chunk), token_ids_N.split(chunk)
    refs = [None] * len(ids) if ref_hidden_ND is None else ref_hidden_ND.split(chunk)
    pieces = []
    for hidden_nD, token_ids_n, ref_nD in zip(hiddens, ids, refs, strict=True):
        args = (hidden_nD, token_ids_n, head, ref_nD, kl, temperature)
        pieces.append(checkpoint(_score_chunk, *args, use_reentrant=False) if grad else _score_chunk(*args))
    return TokenScores(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _score_chunk(
    hidden_nD: Tensor, token_ids_n: Tensor, head: Head, ref_hidden_nD: Tensor | None, kl: KL, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    all_nV = _log_softmax(head(hidden_nD), temperature)
    logprobs_n = all_nV.gather(-1, token_ids_n[:, None])[:, 0]
    with torch.no_grad():
        entropy_n = torch.special.entr(all_nV.exp()).sum(-1)  # 0 log 0 = 0
    if ref_hidden_nD is None:
        return logprobs_n, torch.zeros_like(entropy_n), entropy_n
    with torch.no_grad():
        ref_nV = _log_softmax(head(ref_hidden_nD), temperature)
    if kl == "full" or kl == "full_reverse":
        kl_n = full_kl(all_nV, ref_nV, reverse=kl == "full_reverse")
    else:
        kl_n = sampled_kl(logprobs_n, ref_nV.gather(-1, token_ids_n[:, None])[:, 0], kl)
    return logprobs_n, kl_n, entropy_n


def _log_softmax(logits_nV: Tensor, temperature: float) -> Tensor:
    logits_nV = logits_nV.float()
    return (logits_nV if temperature == 1.0 else logits_nV / temperature).log_softmax(-1)
