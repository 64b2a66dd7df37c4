"""Continuations against the cached prompt: what the whole pass over both says, in every family."""

import pytest
import torch
from causal_families import ACCEPTED, VOCAB, build, targets
from fakes import byte_tokenizer
from svf_families import build_int8, randomize

from transformer2 import z_rows
from transformer2.data import collate
from transformer2.errors import UserError
from transformer2.policy import build_policy
from transformer2.rollout import prefill
from transformer2.rollout.continuations import continuation_logprobs
from transformer2.rollout.hf import HFEngine
from transformer2.types import Example

FAST = ("llama", "gpt2", "mamba", "jamba", "zamba2", "qwen3_5_text", "falcon_h1", "mixtral", "gemma2", "mistral")
every = [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in ACCEPTED]
# One token; two that begin alike; the beginning of another; four.
CONTINUATIONS = ([2], [20, 2], [20, 31, 2], [20, 31], [44, 13, 52, 2])


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(12, VOCAB, (n,), generator=generator).tolist() for n in (3, 9, 6, 7)]
    return collate([Example(f"t/{i}", (), "") for i in range(len(rows))], rows, 0)


def policy_of(model):
    policy = build_policy(model.requires_grad_(False), {"target_modules": targets(model)})
    randomize(policy, std=0.2)
    return policy


def scores(policy, prompts, max_rows=None):
    return continuation_logprobs(HFEngine(byte_tokenizer(), [2], max_rows), policy, prompts, CONTINUATIONS)


@torch.no_grad()
def whole_passes(policy, prompts):
    """Each prompt with each continuation, alone, without padding and without a cache."""
    sums = []
    for ids, mask in zip(prompts.input_ids_BP, prompts.attention_mask_BP, strict=True):
        prompt = ids[mask == 1]
        for continuation in CONTINUATIONS:
            whole = torch.cat([prompt, torch.tensor(continuation)])[None]
            logprobs = policy(whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            sums.append(logprobs.gather(-1, whole[0, len(prompt) :, None]).sum())
    return torch.stack(sums).view(len(prompts), -1)


@pytest.mark.parametrize("family", every)
def test_equal_the_whole_pass(family, prompts):
    policy = policy_of(build(family))
    found = scores(policy, prompts)
    torch.testing.assert_close(found, whole_passes(policy, prompts), rtol=1e-3, atol=1e-3)
    assert found.dtype == torch.float32 and float(found.std(0).min()) > 0.01, "prompts must matter"


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda: build("llama"), 1e-5),
        (lambda: build("llama", torch.bfloat16), 0.05),
        (lambda: build_int8("llama"), 1e-4),
    ],
    ids=["fp32", "bf16", "int8"],
)
@pytest.mark.parametrize("max_rows", [None, 5, 2])
def test_however_many_rows_are_run_at_a_time(make, tolerance, max_rows, prompts, monkeypatch):
    """Continuations of one prompt are never parted, prompts are; a pass over prompts holds two of them."""
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 20)
    policy = policy_of(make())
    found = scores(policy, prompts, max_rows)
    torch.testing.assert_close(found, whole_passes(policy, prompts), rtol=tolerance, atol=tolerance)


def test_every_row_has_its_own_z(prompts):
    policy = policy_of(build("llama"))
    weights = [[1.0], [0.0], [0.5], [-1.0]]
    with z_rows(policy, weights, ["default"]):
        mixed = scores(policy, prompts)
    for b, row in enumerate(weights):
        with z_rows(policy, [row], ["default"]):
            torch.testing.assert_close(mixed[b], scores(policy, prompts)[b], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed, scores(policy, prompts), atol=1e-2)


def test_the_prompt_is_run_once_and_a_continuation_to_its_end(prompts):
    policy = policy_of(build("llama"))
    scores(policy, prompts)  # the engine's check of the model is behind us
    seen = []
    hook = policy.get_input_embeddings().register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape)))
    scores(policy, prompts)
    hook.remove()
    assert seen == [(4, 9), (4 * 4, 1), (4 * 2, 1), (4, 1)]


def test_memory_that_runs_out_halves_the_prompts(prompts):
    policy = policy_of(build("llama"))
    expected, engine = scores(policy, prompts), HFEngine(byte_tokenizer(), [2])

    def refuse(layer, args):
        if len(args[0]) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = policy.get_base_model().model.layers[1].register_forward_pre_hook(refuse)
    with pytest.warns(UserWarning, match="with 4 rows: continuing with 2 at a time"):
        found = continuation_logprobs(engine, policy, prompts, CONTINUATIONS)
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert engine.max_rows == 2 * len(CONTINUATIONS)


def test_logits_that_are_no_numbers_are_no_likelihood(prompts):
    policy = policy_of(build("llama"))
    scores(policy, prompts)
    policy.get_input_embeddings().weight.data[44] = torch.nan  # only the last continuation has it
    prompts.input_ids_BP[prompts.input_ids_BP == 44] = 45
    with pytest.raises(UserError, match="non-finite logits for prompt 't/0'"):
        scores(policy, prompts)
