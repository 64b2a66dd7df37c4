"""Each estimator's value and gradient against enumeration over a small vocabulary, in fp64."""

import pytest
import torch

from transformer2.rl.kl import full_kl, sampled_kl

V = 7


@pytest.fixture
def policies():
    g = torch.Generator().manual_seed(0)
    logits_V = torch.randn(V, generator=g, dtype=torch.float64, requires_grad=True)
    ref_V = torch.randn(V, generator=g, dtype=torch.float64).log_softmax(-1)
    return logits_V, ref_V


def exact_gradient(logits_V, ref_V, reverse):
    value = full_kl(logits_V.log_softmax(-1)[None], ref_V[None], reverse=reverse).sum()
    return torch.autograd.grad(value, logits_V)[0], value.detach()


def expected_gradient(logits_V, ref_V, kind):
    """E_y~pi [ d estimator(y) ], summed over every y with its probability held constant."""
    logprobs_V = logits_V.log_softmax(-1)
    estimate_V = sampled_kl(logprobs_V, ref_V, kind)
    if not estimate_V.requires_grad:
        return torch.zeros_like(logits_V)
    return torch.autograd.grad((logprobs_V.exp().detach() * estimate_V).sum(), logits_V)[0]


def test_full_kl_is_the_textbook_sum(policies):
    logits_V, ref_V = policies
    p, q = logits_V.softmax(-1), ref_V.exp()
    kl = torch.nn.functional.kl_div
    assert torch.allclose(exact_gradient(*policies, False)[1], kl(q.log(), p, reduction="sum"))
    assert torch.allclose(exact_gradient(*policies, True)[1], kl(p.log(), q, reduction="sum"))


@pytest.mark.parametrize(("kind", "reverse"), [("k1", False), ("k3", False)])
def test_k1_and_k3_are_unbiased_values_of_the_papers_kl(policies, kind, reverse):
    logits_V, ref_V = policies
    logprobs_V = logits_V.log_softmax(-1)
    mean = (logprobs_V.exp() * sampled_kl(logprobs_V, ref_V, kind)).sum()
    assert torch.allclose(mean, exact_gradient(logits_V, ref_V, reverse)[1])


@pytest.mark.parametrize(("kind", "reverse"), [("k2", False), ("k3", True)])
def test_gradient_of_k2_is_the_papers_and_of_k3_the_reverse(policies, kind, reverse):
    exact, _ = exact_gradient(*policies, reverse)
    assert torch.allclose(expected_gradient(*policies, kind), exact, atol=1e-12)


def test_k1_gives_no_gradient_because_its_expectation_is_zero(policies):
    logits_V, ref_V = policies
    assert not sampled_kl(logits_V.log_softmax(-1), ref_V, "k1").requires_grad
    logprobs_V = logits_V.log_softmax(-1)
    naive = torch.autograd.grad((logprobs_V.exp().detach() * (logprobs_V - ref_V)).sum(), logits_V)[0]
    assert torch.allclose(naive, torch.zeros_like(naive), atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_masked_vocabulary_entry_counts_for_nothing(policies, reverse):
    logits_V, ref_V = policies
    masked = torch.zeros(V, dtype=torch.bool)
    masked[3] = True
    both = [x.masked_fill(masked, float("-inf")).log_softmax(-1)[None] for x in (logits_V, ref_V)]
    value = full_kl(*both, reverse=reverse)
    alone = [x[~masked].log_softmax(-1)[None] for x in (logits_V, ref_V)]
    assert torch.allclose(value, full_kl(*alone, reverse=reverse))
    assert torch.isfinite(torch.autograd.grad(value.sum(), logits_V)[0]).all()
