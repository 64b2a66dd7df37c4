"""The natural gradient against the whole Fisher matrix, inverted."""

import pytest
import torch

from transformer2.rl.natural import natural_gradient


@pytest.mark.parametrize(("rows", "size"), [(4, 9), (9, 4), (1, 3)])
def test_it_is_the_gradient_divided_by_the_damped_fisher_matrix(rows, size):
    torch.manual_seed(0)
    scores_BZ, gradient_Z = torch.randn(rows, size).double(), torch.randn(size).double()
    fisher_ZZ = scores_BZ.T @ scores_BZ / rows
    damped_ZZ = fisher_ZZ + 0.3 * fisher_ZZ.trace() / rows * torch.eye(size).double()
    assert torch.allclose(natural_gradient(gradient_Z, scores_BZ, 0.3), torch.linalg.solve(damped_ZZ, gradient_Z))


def test_a_step_changes_log_probabilities_by_the_advantages_whatever_their_scale():
    torch.manual_seed(0)
    scores_BZ, advantages_B = torch.randn(4, 50) * torch.tensor([0.1, 1, 1, 10])[:, None], torch.randn(4)
    step_Z = natural_gradient(-(advantages_B @ scores_BZ) / 4, scores_BZ, 1e-5)
    assert torch.allclose(scores_BZ @ -step_Z, advantages_B, atol=0.1)
    assert torch.allclose(1000 * natural_gradient(-(advantages_B @ (1000 * scores_BZ)) / 4, 1000 * scores_BZ, 0.3),
                          natural_gradient(-(advantages_B @ scores_BZ) / 4, scores_BZ, 0.3), rtol=1e-3)  # fmt: skip


def test_rows_without_tokens_teach_nothing_and_divide_by_nothing():
    gradient_Z = torch.zeros(3)
    assert torch.equal(natural_gradient(gradient_Z, torch.zeros(2, 3), 0.3), gradient_Z)


def test_rows_that_the_loss_leaves_out_do_not_make_the_others_steps_longer():
    torch.manual_seed(0)
    scores_BZ, advantages_B = torch.randn(3, 20), torch.randn(3)
    alone_Z = natural_gradient(-(advantages_B @ scores_BZ) / 3, scores_BZ, 0.3)
    among_BZ = torch.cat([scores_BZ, torch.zeros(61, 20)])
    assert torch.allclose(natural_gradient(-(advantages_B @ scores_BZ) / 64, among_BZ, 0.3), alone_Z, rtol=1e-4)
