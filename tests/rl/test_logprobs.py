"""Chunked and checkpointed scores equal the whole-vocabulary formula, value and gradient."""

from typing import get_args

import pytest
import torch

from transformer2.rl.kl import KL, full_kl, sampled_kl
from transformer2.rl.logprobs import MIN_CHUNK_TOKENS, chunk_tokens, score_tokens

N, D, V = 50, 8, 31


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    head = torch.nn.Linear(D, V, bias=False, dtype=torch.float64).requires_grad_(False)
    return make(N, D).requires_grad_(), make(N, D), torch.randint(V, (N,), generator=g), head


@pytest.mark.parametrize("kl", get_args(KL))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_equal_the_whole(inputs, kl, temperature):
    hidden_ND, ref_ND, ids_N, head = inputs
    scores = score_tokens(hidden_ND, ids_N, head, ref_ND, kl=kl, temperature=temperature, chunk=16)
    all_NV = (head(hidden_ND) / temperature).float().log_softmax(-1)
    ref_NV = (head(ref_ND) / temperature).float().log_softmax(-1)
    logprobs_N = all_NV.gather(-1, ids_N[:, None])[:, 0]
    if kl.startswith("full"):
        kl_N = full_kl(all_NV, ref_NV, reverse=kl == "full_reverse")
    else:
        kl_N = sampled_kl(logprobs_N, ref_NV.gather(-1, ids_N[:, None])[:, 0], kl)
    assert torch.allclose(scores.logprobs_N, logprobs_N, atol=1e-5)
    assert torch.allclose(scores.kl_N, kl_N, atol=1e-5)
    assert torch.allclose(scores.entropy_N, -(all_NV.exp() * all_NV).sum(-1), atol=1e-5)
    chunked = torch.autograd.grad((scores.logprobs_N + scores.kl_N).sum(), hidden_ND)[0]
    whole = torch.autograd.grad((logprobs_N + kl_N).sum(), hidden_ND)[0]
    assert torch.allclose(chunked, whole, atol=1e-5)


def test_no_logits_survive_the_forward_pass(inputs):
    """What autograd keeps for the backward pass is smaller than one logits tensor of the sequence."""
    hidden_ND, ref_ND, ids_N, head = inputs
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        score_tokens(hidden_ND, ids_N, head, ref_ND, kl="full", chunk=10)
    assert not [shape for shape in kept if len(shape) == 2 and shape[-1] == V]


def test_without_tokens_or_reference(inputs):
    hidden_ND, _, ids_N, head = inputs
    assert score_tokens(hidden_ND[:0], ids_N[:0], head, chunk=4).logprobs_N.shape == (0,)
    assert score_tokens(hidden_ND, ids_N, head, chunk=4).kl_N.eq(0).all()


def test_chunks_are_long_for_small_vocabularies_only():
    assert chunk_tokens(256) > 4096
    assert chunk_tokens(128_256) == MIN_CHUNK_TOKENS
