"""The mixing algebra: one function for rows, adapters, expert folders and searches."""

from __future__ import annotations

import pytest
import torch

from transformer2.errors import UserError
from transformer2.svf.mixing import mix_deltas, mixing_weights, normalised

DELTAS = [torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.0, -0.4])]


@pytest.mark.parametrize("mix", ["delta", "normalised", "raw"])
def test_every_mix_is_its_formula(mix):
    z = [1 + delta for delta in DELTAS]
    expected = {"delta": 1 + 0.5 * DELTAS[0] + 1.5 * DELTAS[1], "raw": 0.5 * z[0] + 1.5 * z[1]}
    expected["normalised"] = 1 + 0.25 * DELTAS[0] + 0.75 * DELTAS[1]
    mixed = mix_deltas(mixing_weights([0.5, 1.5], 2, mix), DELTAS, mix)
    torch.testing.assert_close(1 + mixed, expected[mix])
    assert mixed.dtype == torch.float32


def test_one_expert_alone_is_itself_and_no_expert_the_base_bit_for_bit():
    """Rows of any leading shape; no matrix product, which may run in TF32."""
    weights = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]])
    mixed = mix_deltas(weights, DELTAS, "delta")
    assert mixed.shape == (2, 2, 3)
    assert torch.equal(mixed[0, 0], DELTAS[0]) and torch.equal(mixed[0, 1], DELTAS[1])
    assert not mixed[1, 0].any()
    with_base = torch.tensor([[0.0, 0.0, 1.0]])
    assert not mix_deltas(with_base, [*DELTAS, torch.zeros(3)], "raw").any()


def test_a_sum_of_zero_has_no_normalised_weights():
    assert normalised(torch.tensor([[1.0, -1.0], [1.0, 3.0]])).isnan().tolist() == [[True, True], [False, False]]
    with pytest.raises(UserError, match="sum to zero"):
        mixing_weights([1.0, -1.0], 2, "normalised")
