"""The loss is the paper's equation: its gradient on a bandit is the exact policy gradient."""

import pytest
import torch

from transformer2.rl.advantages import advantages
from transformer2.rl.loss import importance_weights, reinforce_loss, sum_by_row
from transformer2.rl.packing import pack_rows, split_rows

NAN = float("nan")


def loss_of_rows(logprobs_B, advantages_B, kl_B, **options):
    """Of completions of one token each."""
    return reinforce_loss(logprobs_B, kl_B, torch.ones(len(kl_B), 1), advantages_B, **options)


def test_expected_gradient_is_the_gradient_of_expected_reward():
    g = torch.Generator().manual_seed(0)
    logits_V = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)
    reward_V = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    exact = torch.autograd.grad(-(logits_V.softmax(-1) * reward_V).sum(), logits_V)[0]
    # Every action once, weighted by its probability: the expectation without sampling noise.
    logprobs_V = logits_V.log_softmax(-1)
    weighted_V = reward_V * logprobs_V.exp().detach()
    loss = loss_of_rows(logprobs_V, weighted_V, torch.zeros(5, dtype=torch.float64), kl_coef=0.0, num_rows=1)
    assert torch.allclose(torch.autograd.grad(loss, logits_V)[0], exact, atol=1e-12)


def test_importance_weights_give_the_policys_gradient_from_another_sampler():
    g = torch.Generator().manual_seed(1)
    logits_V, sampler_V = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(2))
    logits_V.requires_grad_()
    reward_V = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    exact = torch.autograd.grad(-(logits_V.softmax(-1) * reward_V).sum(), logits_V)[0]
    logprobs_V, sampled_V = logits_V.log_softmax(-1), sampler_V.log_softmax(-1)

    def gradient(weights_V: torch.Tensor) -> torch.Tensor:
        expected_V = reward_V * sampled_V.exp()  # every action once, as often as the sampler draws it
        options = {"kl_coef": 0.0, "num_rows": 1, "weights_N": weights_V}
        loss = loss_of_rows(logprobs_V, expected_V, torch.zeros(5), **options)
        return torch.autograd.grad(loss, logits_V, retain_graph=True)[0]

    assert torch.allclose(gradient(importance_weights(logprobs_V, sampled_V, cap=1e9)), exact, atol=1e-12)
    assert not torch.allclose(gradient(torch.ones(5)), exact, atol=1e-2)
    assert importance_weights(logprobs_V, sampled_V, cap=1.5).max() == 1.5


def test_micro_batches_add_up():
    g = torch.Generator().manual_seed(0)
    logprobs_B, kl_B, adv_B = (torch.randn(6, generator=g) for _ in range(3))
    whole = loss_of_rows(logprobs_B, adv_B, kl_B, kl_coef=0.3, num_rows=6)
    parts = sum(loss_of_rows(logprobs_B[r], adv_B[r], kl_B[r], kl_coef=0.3, num_rows=6) for r in ([0, 4], [1, 2, 3, 5]))
    assert torch.allclose(whole, parts)


def test_k1_goes_into_the_reward():
    logprobs_B = torch.zeros(2, requires_grad=True)
    kl_B = torch.tensor([2.0, -1.0])
    loss = loss_of_rows(logprobs_B, torch.tensor([1.0, 1.0]), kl_B, kl_coef=0.5, num_rows=2, kl_in_reward=True)
    loss.backward()
    assert logprobs_B.grad.tolist() == [-(1 - 1.0) / 2, -(1 + 0.5) / 2]
    assert float(loss) == 0.0  # the KL is in the reward, not added to it


def test_sum_by_row_follows_the_mask():
    mask_BC = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    assert sum_by_row(torch.tensor([1.0, 2.0, 4.0]), mask_BC).tolist() == [3.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("baseline", "group", "expected"),
    [
        ("none", 1, [1, -1, 1, 1]),
        ("batch_mean", 1, [0.5, -1.5, 0.5, 0.5]),
        ("rloo", 2, [2, -2, 0, 0]),
        ("rloo", 4, [2 / 3, -2, 2 / 3, 2 / 3]),
        ("group_norm", 2, [0.7071, -0.7071, 0, 0]),
    ],
)
def test_advantages(baseline, group, expected):
    rewards_B = torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert torch.allclose(advantages(rewards_B, baseline, group), torch.tensor(expected, dtype=torch.float), atol=1e-4)


@pytest.mark.parametrize("baseline", ["none", "batch_mean", "rloo", "group_norm"])
def test_a_failed_verifier_changes_nothing_for_the_others(baseline):
    with_failure = advantages(torch.tensor([1.0, -1.0, NAN, 1.0, 1.0, NAN]), baseline, 3)
    assert with_failure[2] == 0 and with_failure[5] == 0
    assert with_failure.isfinite().all()
    alone = advantages(torch.tensor([1.0, -1.0]), baseline, 2)
    if baseline in ("rloo", "group_norm"):
        assert torch.allclose(with_failure[:2], alone)


def test_a_row_whose_companions_failed_gives_no_signal():
    assert advantages(torch.tensor([1.0, NAN]), "rloo", 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("baseline", ["batch_mean", "rloo", "group_norm"])
@pytest.mark.parametrize("reward", [-1.0, 0.1, 0.7, 1 / 3])
def test_equal_rewards_give_no_gradient(baseline, reward):
    """The mean of equal numbers is not always that number, and optimizers make steps of whatever is left."""
    for size in range(2, 17):
        rewards_B = torch.full((2 * size,), reward)
        rewards_B[0] = NAN
        assert advantages(rewards_B, baseline, size).eq(0).all(), size
        if baseline != "batch_mean":  # beside a group whose rewards differ
            rewards_B[1] = 2.0
            assert advantages(rewards_B, baseline, size)[size:].eq(0).all(), size


def test_wrong_group_sizes_are_named():
    with pytest.raises(ValueError, match="num_completions >= 2"):
        advantages(torch.ones(4), "rloo", 1)
    with pytest.raises(ValueError, match="groups of 3"):
        advantages(torch.ones(4), "none", 3)
    with pytest.raises(ValueError, match="unknown baseline"):
        advantages(torch.ones(4), "mean", 1)


def test_packing_bounds_tokens_and_loses_no_row():
    prompts, completions = [3, 9, 4, 8, 2, 30], [5, 1, 7, 2, 2, 40]
    groups = pack_rows(prompts, completions, 40)
    assert sorted(r for g in groups for r in g) == list(range(6))
    for group in groups:
        tokens = len(group) * (max(prompts[r] for r in group) + max(completions[r] for r in group))
        assert tokens <= 40 or len(group) == 1
    assert len(pack_rows(prompts, completions, 10_000)) == 1


def test_splitting_keeps_the_rows_and_reaches_the_count():
    groups = [[0, 1, 2, 3], [4, 5], [6]]
    for count in range(3, 8):
        split = split_rows(groups, count)
        assert len(split) == count
        assert sorted(row for group in split for row in group) == list(range(7))
    assert split_rows(groups, 2) == groups


def test_rows_of_a_prompt_stay_together_and_count_its_tokens_once():
    prompts, completions = [10] * 4 + [30] * 4 + [20] * 4, [5, 9, 1, 1, 2, 2, 2, 8, 3, 3, 3, 3]
    groups = pack_rows(prompts, completions, 94, completions=4)
    assert groups == [[7, 4, 5, 6], [8, 9, 10, 11, 1, 0], [2, 3]]  # 30 + 4 x 8, 2 x 20 + 6 x 9
