"""transformers' continuous batching as a rollout engine, on the embedded model."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from causal_families import build, targets
from vision_bases import make_vision

import transformer2
from transformer2 import tasks
from transformer2.data.prompts import collate, render
from transformer2.errors import ConfigError, UserError
from transformer2.policy import build_policy, load_base, load_tokenizer, reference
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.paged import PagedEngine
from transformer2.svf.layer import svf_layers
from transformer2.types import Example, PromptBatch

EOS = [3]
TOKENIZER = load_tokenizer("tiny")


def questions(count: int) -> PromptBatch:
    examples = [e for name in ("tiny_math", "tiny_code") for e in tasks.get(name).examples("validation")[: count // 2]]
    return collate(examples, [render(TOKENIZER, e) for e in examples], 0)


def trained():
    policy = build_policy(load_base("tiny"), {"target_modules": "all-linear", "basis_cache": "off"})
    torch.manual_seed(0)
    for _, layer in svf_layers(policy):
        layer.parameters_of("default")[0].data.normal_(0, 0.2)
    return policy


def test_greedy_completions_are_those_of_the_default_engine_under_expert_and_base() -> None:
    policy, prompts, greedy = trained(), questions(12), Sampling(0.0, max_new_tokens=24)
    here, paged = HFEngine(TOKENIZER, EOS, merge=True), PagedEngine(TOKENIZER, EOS, merge=True)
    logits = policy(prompts.input_ids_BP, attention_mask=prompts.attention_mask_BP).logits
    expected, drawn = here.generate(policy, prompts, greedy, 0), paged.generate(policy, prompts, greedy, 0)
    assert torch.equal(drawn.completion_ids_BC, expected.completion_ids_BC), "EOS included"
    assert torch.equal(drawn.completion_mask_BC, expected.completion_mask_BC)
    assert torch.equal(drawn.finished_B, expected.finished_B) and expected.finished_B.any()
    with torch.inference_mode():  # as Lightning tests
        assert paged.generate(policy, prompts, greedy, 0).completions == drawn.completions
    with reference(policy):
        base = paged.generate(policy, prompts, greedy, 0)
        assert base.completions == here.generate(policy, prompts, greedy, 0).completions != drawn.completions
    assert torch.equal(policy(prompts.input_ids_BP, attention_mask=prompts.attention_mask_BP).logits, logits)


def test_first_tokens_follow_the_policys_distribution_and_say_their_logprobs() -> None:
    model, one = load_base("tiny"), questions(2)
    copies = PromptBatch(one.examples[:1], one.input_ids_BP[:1], one.attention_mask_BP[:1], (0,)).repeat(128)
    state = torch.random.get_rng_state()
    drawn = PagedEngine(TOKENIZER, EOS, max_rows=64).generate(model, copies, Sampling(1.0, max_new_tokens=1), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state), "training's own random numbers are left alone"
    logprobs_V = model(one.input_ids_BP[:1], attention_mask=one.attention_mask_BP[:1]).logits[0, -1].log_softmax(-1)
    first_B = drawn.completion_ids_BC[:, 0]
    assert torch.allclose(drawn.logprobs_BC[:, 0], logprobs_V[first_B], atol=1e-4)
    counts = Counter(first_B.tolist())
    for token in logprobs_V.topk(5).indices.tolist():
        p = logprobs_V[token].exp().item()
        assert abs(counts[token] - 128 * p) < 4 * math.sqrt(128 * p * (1 - p)) + 1


def test_the_same_seed_draws_the_same() -> None:
    model, prompts, sampling = load_base("tiny"), questions(8), Sampling(1.0, max_new_tokens=8)
    engine = PagedEngine(TOKENIZER, EOS)
    first = engine.generate(model, prompts, sampling, seed=1).completions
    assert engine.generate(model, prompts, sampling, seed=1).completions == first
    assert engine.generate(model, prompts, sampling, seed=2).completions != first
    other_rank = replace(prompts, row_ids=tuple(range(1, 16, 2)))
    assert engine.generate(model, other_rank, sampling, seed=1).completions != first


def test_rows_of_different_z_are_refused() -> None:
    policy, prompts = trained(), questions(2)
    rows = transformer2.z_rows(policy, [[1.0]] * len(prompts), ["default"])
    with rows, pytest.raises(UserError, match="rollout: hf"):
        PagedEngine(TOKENIZER, EOS).generate(policy, prompts, Sampling(), 0)


def test_a_base_that_takes_pictures_is_refused_by_name(tmp_path) -> None:
    tokenizer = load_tokenizer(str(make_vision(tmp_path / "base")))
    with pytest.raises(ConfigError, match=r"paged runs bases of text alone, and this one takes pictures; use hf"):
        PagedEngine(tokenizer, [1])


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("bloom", "draws from BloomForCausalLM as from another model"),  # whose positions are in its mask
        pytest.param("mpt", "draws from MptForCausalLM as from another model", marks=pytest.mark.slow),
        pytest.param("gptj", "draws from GPTJForCausalLM as from another model", marks=pytest.mark.slow),
        pytest.param("gpt_neo", "draws from GPTNeoForCausalLM as from another model", marks=pytest.mark.slow),
        ("jamba", "does not run JambaForCausalLM"),
        pytest.param("falcon", "does not run FalconForCausalLM", marks=pytest.mark.slow),
        pytest.param("gpt2", None, marks=pytest.mark.slow),
        pytest.param("gemma2", None, marks=pytest.mark.slow),
        pytest.param("mixtral", None, marks=pytest.mark.slow),
    ],
)
def test_a_family_that_the_library_decodes_otherwise_is_refused_by_name(family, words) -> None:
    model = build(family)
    policy = build_policy(model, {"target_modules": targets(model)})
    ids = torch.arange(12, 24).view(2, 6)
    prompts = PromptBatch((Example("a", (), ""), Example("b", (), "")), ids, torch.ones_like(ids))
    engine, greedy = PagedEngine(TOKENIZER, EOS, merge=True), Sampling(0.0, max_new_tokens=4)
    if words is None:
        assert len(engine.generate(policy, prompts, greedy, 0)) == 2
        return
    with pytest.raises(ConfigError, match=rf"continuous batching {words}.*use model\.rollout: hf") as error:
        engine.generate(policy, prompts, greedy, 0)
    assert "\n" not in str(error.value)
