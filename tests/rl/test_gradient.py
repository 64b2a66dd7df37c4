"""The flat gradient is autograd's, and an engine that is handed it gets it to the bit."""

import math

import pytest
import torch

from transformer2.rl.gradient import clipped, gradient_of, with_gradient


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((3,), (2, 4), (5,))]


def loss(ps):
    return (ps[0].square().sum() * ps[1].sin().sum()).exp() * 1e-3  # ps[2] has no part in it


def test_it_is_the_gradient_of_backward():
    ps = parameters()
    gradient_Z = gradient_of(loss(ps), ps)
    assert all(p.grad is None for p in ps)
    loss(ps).backward()
    expected = torch.cat([ps[0].grad, ps[1].grad.flatten(), torch.zeros(5)])
    assert torch.equal(gradient_Z, expected)


def test_no_hook_of_an_engine_runs():
    ps, called = parameters(), []
    for p in ps:
        p.register_post_accumulate_grad_hook(called.append)
    gradient_of(loss(ps), ps)
    assert not called


def test_it_comes_back_to_the_bit():
    ps = parameters()
    gradient_Z = torch.randn(16) * 1e-9
    with_gradient(ps, gradient_Z).backward()
    assert torch.equal(torch.cat([p.grad.flatten() for p in ps]), gradient_Z)


def test_clipping_is_that_of_torch():
    ps = parameters()
    gradient_Z = torch.randn(16)
    with_gradient(ps, gradient_Z).backward()
    norm = torch.nn.utils.clip_grad_norm_(ps, 0.5)
    mine_Z, before = clipped(gradient_Z, 0.5)
    assert before == pytest.approx(float(norm))
    assert torch.allclose(mine_Z, torch.cat([p.grad.flatten() for p in ps]))
    assert clipped(gradient_Z, None)[0] is gradient_Z
    assert math.isnan(clipped(gradient_Z * math.nan, 0.5)[1])
