"""Prompts a few rows at a time, the head for one position: what a plain forward pass gives, in every family."""

import pytest
import torch
from svf_families import FAMILIES, build, prompt
from transformers import DynamicCache

from transformer2.rollout import prefill as module
from transformer2.rollout.prefill import next_logits, prefill

ROWS, WIDTH = 5, 7


def left_padded():
    ids, mask = prompt(ROWS, WIDTH), torch.ones(ROWS, WIDTH, dtype=torch.long)
    mask[1, :3] = mask[4, :5] = 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_forward_pass(family, whole, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_TOKENS", 2 * WIDTH)
    model, (ids, mask, positions) = build(family), left_padded()
    selected = []
    logits, cache, _, position = prefill(model, ids, mask, lambda rows: selected.append(rows.tolist()), whole)

    plain = DynamicCache(config=model.config)
    expected = model(ids, attention_mask=mask, position_ids=positions, past_key_values=plain).logits
    torch.testing.assert_close(logits, expected[:, -1])
    assert torch.equal(position, positions[:, -1:])
    everyone = list(range(ROWS))
    assert selected == ([everyone] if whole else [[0, 1], [2, 3], [4]]) + [everyone]

    longer, after = torch.cat([mask, mask.new_ones(ROWS, 1)], dim=-1), positions[:, -1:] + 1
    given = [next_logits(model, ids[:, :1], longer, after, c) for c in (cache, plain)]
    torch.testing.assert_close(*given)


@torch.no_grad()
def test_the_head_sees_one_contiguous_position_and_is_left_as_it_was():
    model, (ids, mask, _) = build("llama"), left_padded()
    seen = []
    watch = model.lm_head.register_forward_hook(lambda m, args, out: seen.append((args[0].shape[:2], args[0].stride())))
    prefill(model, ids, mask, lambda rows: None)
    watch.remove()
    hidden = model.config.hidden_size
    assert seen == [((ROWS, 1), (hidden, hidden, 1))]
    assert not model.lm_head._forward_pre_hooks

    with pytest.raises(IndexError):
        prefill(model, ids + 1000, mask, lambda rows: None)
    assert not model.lm_head._forward_pre_hooks
