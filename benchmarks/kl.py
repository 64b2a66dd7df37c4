"""The KL term: peak memory and seconds of rl/logprobs.py against the formula with both models' log-softmax kept.

    python benchmarks/run.py kl

Hidden size and vocabulary have the 8B's ratio (1 : 32). The term is log-probabilities and full KL of N sampled tokens
from hidden states, and its gradient with respect to them; the hidden states themselves are not counted, their gradient
is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import DEVICE, MIB, Row, interleave, peak_bytes
from torch import Tensor

from transformer2.rl.kl import full_kl
from transformer2.rl.logprobs import chunk_tokens, score_tokens

KL_COEF = 0.2


def measure(toy: bool = False) -> list[Row]:
    hidden, vocab, tokens = (16, 512, 64) if toy else (1024, 32768, 512)
    once, twice = _term(hidden, vocab, tokens), _term(hidden, vocab, 2 * tokens)
    ours, theirs = peak_bytes(once["chunked"]), peak_bytes(once["formula"])
    ours_twice, theirs_twice = peak_bytes(twice["chunked"]), peak_bytes(twice["formula"])
    times = interleave(once, rounds=1 if toy else 3, warmup=0)
    (loss, grad_ND), (exact, exact_grad_ND) = (
        once["chunked"](),
        _term(hidden, vocab, tokens, torch.float64)["formula"](),
    )
    logits = 4 * tokens * vocab
    size = f"{tokens} tokens, vocabulary {vocab}"
    note = f"{ours / MIB:.0f} of {theirs / MIB:.0f} MiB; one model's logits {logits / MIB:.0f} MiB"
    apart = abs(float(loss - exact)) / abs(float(exact))
    grad_apart = float((grad_ND - exact_grad_ND).abs().max() / exact_grad_ND.abs().max())
    return [
        Row(f"peak, {size}", ours / theirs, at_most=0.2, note=note),
        Row(f"peak, {2 * tokens} tokens", ours_twice / theirs_twice, at_most=0.2, note=f"{ours_twice / MIB:.0f} MiB"),
        Row(
            "peak when tokens double",
            ours_twice / ours,
            at_most=1.05,
            note=f"the formula {theirs_twice / theirs:.2f} x",
        ),
        Row(f"seconds, {size}", times.ratio("chunked", "formula"), note=f"{times.median('formula'):.2f} s"),
        Row("value, relative difference to fp64", apart, unit="", at_most=1e-5),
        Row("gradient, largest difference to fp64 over largest entry", grad_apart, unit="", at_most=1e-5),
    ]


def _term(
    hidden: int, vocab: int, tokens: int, dtype: torch.dtype = torch.float32
) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    head_VD = (torch.randn(vocab, hidden, device=DEVICE) / hidden**0.5).to(dtype)
    ref_ND = torch.randn(tokens, hidden, device=DEVICE)
    hidden_ND = (ref_ND + 0.1 * torch.randn_like(ref_ND)).to(dtype).requires_grad_()
    ref_ND = ref_ND.to(dtype)
    ids_N = torch.randint(vocab, (tokens,), device=DEVICE)
    advantages_N = torch.randn(tokens, device=DEVICE).to(dtype)

    def chunked() -> tuple[Tensor, Tensor]:
        scores = score_tokens(
            hidden_ND, ids_N, lambda h: F.linear(h, head_VD), ref_ND, chunk=chunk_tokens(vocab) if vocab > 4096 else 16
        )
        return descend(scores.logprobs_N, scores.kl_N)

    def formula() -> tuple[Tensor, Tensor]:
        all_NV = F.linear(hidden_ND, head_VD).log_softmax(-1)
        with torch.no_grad():
            ref_NV = F.linear(ref_ND, head_VD).log_softmax(-1)
        return descend(all_NV.gather(-1, ids_N[:, None])[:, 0], full_kl(all_NV, ref_NV))

    def descend(logprobs_N: Tensor, kl_N: Tensor) -> tuple[Tensor, Tensor]:
        loss = (KL_COEF * kl_N - advantages_N * logprobs_N).sum() / tokens
        hidden_ND.grad = None
        loss.backward()
        assert hidden_ND.grad is not None
        return loss.detach(), hidden_ND.grad

    return {"chunked": chunked, "formula": formula}
