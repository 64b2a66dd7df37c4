"""Tokens that prompts have in common, run once: the same states, gradients and completions, in every family."""

import pytest
import torch
from svf_families import FAMILIES, build, prompt, randomize
from transformers import DynamicCache

from transformer2 import SVFConfig, z_rows
from transformer2.module.scores import predicting_states
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.prefill import next_logits, prefill
from transformer2.rollout.probe import can_share
from transformer2.rollout.shared import shareable, shared_part
from transformer2.types import PromptBatch, Rollouts

WIDTH = 12
WINDOWED = {"mistral", "gemma2", "gemma3"}  # a window counts columns, and padding stands amid the shared ones


def prompts(groups=(1, 3, 2), begins=6):
    """Left-padded prompts, some rows of each; all begin alike."""
    ids = prompt(len(groups), WIDTH)
    ids[:, :begins] = ids[0, :begins]
    mask = torch.ones_like(ids)
    ids[1], mask[1, :3] = ids[1].roll(3), 0
    rows = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))
    return ids[rows], mask[rows]


def rollouts(ids, mask):
    completion, sampled = prompt(len(ids), 4), torch.ones(len(ids), 4, dtype=torch.long)
    sampled[2, 1:] = 0
    return Rollouts((None,) * len(ids), ids, mask, completion, sampled, ("",) * len(ids), sampled[:, 0].bool())


@pytest.fixture
def policy(request):
    from peft import get_peft_model

    policy = get_peft_model(build(request.param), SVFConfig(target_modules="all-linear")).eval()
    randomize(policy)
    return policy


@pytest.mark.parametrize("begins", [6, 0], ids=["one beginning", "rows of a prompt"])
@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_states_and_gradients_are_those_of_each_row_alone(policy, begins, request):
    drawn = rollouts(*prompts(begins=begins))
    trained = [p for p in policy.parameters() if p.requires_grad]
    found = []
    for share in (True, False):
        hidden_ND = predicting_states(policy, drawn, share)
        weights_ND = torch.arange(hidden_ND.numel()).sin().view_as(hidden_ND)
        gradients = torch.autograd.grad((hidden_ND * weights_ND).sum(), trained)
        found.append((hidden_ND, torch.cat([g.flatten() for g in gradients])))
    (shared, shared_gradient), (alone, gradient) = found
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shared_gradient, gradient, atol=1e-4, rtol=1e-3)
    assert not torch.equal(shared, alone), "nothing was shared"


@torch.no_grad()
@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_a_prefill_of_shared_prompts_continues_like_one_of_rows(policy):
    ids, mask = prompts()
    found = []
    for share in (True, False):
        logits, cache, kept, position = prefill(policy, ids, mask, lambda rows: None, share=share)
        assert torch.equal(position[:, 0], mask.sum(-1) - 1)
        assert kept.shape == mask.shape and torch.equal(kept.sum(-1), mask.sum(-1))
        assert torch.equal(kept, mask) != share
        longer = torch.cat([kept, kept.new_ones(len(ids), 1)], dim=1)
        found.append((logits, next_logits(policy, ids[:, :1], longer, position + 1, cache)))
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_not_shared(family):
    model = build(family)
    assert can_share(model, torch.device("cpu")) == (family not in WINDOWED)
    assert shareable(DynamicCache(config=model.config)) == (family not in WINDOWED)


def test_what_is_shared_is_counted():
    ids, mask = prompts()
    shared = shared_part(ids, mask)
    assert shared.beginning_1K.tolist() == [ids[0, :6].tolist()] and len(shared.rest_UR) == 3
    assert shared.prompt_B.tolist() == [0, 1, 1, 1, 2, 2]
    assert shared.tokens == 6 + 3 * 6
    # The beginning and the rest that counts are the prompt, for every row.
    for b, u in enumerate(shared.prompt_B):
        rest = shared.rest_UR[u][shared.mask_UP[u, 6:].bool()]
        assert torch.cat([shared.beginning_1K[0], rest]).tolist() == ids[b][mask[b].bool()].tolist()
    # Long completions of their own leave little to save, and so do two tokens in common.
    assert shared_part(ids, mask, columns=200) is None
    assert shared_part(*prompts(groups=(1, 1, 1), begins=2)) is None
    # A prompt that another one begins with keeps a token of its own.
    nested, alone = torch.full((4, 8), 5), torch.ones(4, 8, dtype=torch.long)
    alone[1, :2] = 0
    part = shared_part(nested, alone)
    assert part.beginning_1K.shape == (1, 5) and part.mask_UP[:, 5:].sum(-1).tolist() == [3, 1]
    assert shared_part(nested[:1], alone[:1]) is None


def test_the_same_completions_are_drawn_and_rows_of_their_own_z_share_nothing(llama_folder, monkeypatch):
    from peft import get_peft_model

    from transformer2.policy import load_base, load_tokenizer
    from transformer2.rollout import prefill as module

    policy = get_peft_model(load_base(str(llama_folder), "float32"), SVFConfig(target_modules="all-linear")).eval()
    randomize(policy)
    ids, mask = prompts(groups=(2, 4, 2))
    batch = PromptBatch((None,) * len(ids), ids, mask)
    engine, ran = HFEngine(load_tokenizer(str(llama_folder)), [1, 4]), []
    watched = module.shared_part
    monkeypatch.setattr(module, "shared_part", lambda *args: (part := watched(*args), ran.append(part is not None))[0])

    def draw():
        return engine.generate(policy, batch, Sampling(max_new_tokens=12), seed=3).completion_ids_BC

    engine.check(policy, ids.device)
    ran.clear()
    shared = draw()
    assert ran == [True] and len(shared.unique(dim=0)) == len(ids), "rows of a prompt draw completions of their own"
    with z_rows(policy, torch.ones(len(ids), 1), experts=["default"]):
        assert torch.equal(draw(), shared) and ran == [True]
