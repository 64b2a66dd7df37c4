"""The sampler: same tokens whatever the batch, ids and masks as sampled, errors that name the prompt."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import torch
from fakes import byte_tokenizer, completion_ids
from peft import get_peft_model

from transformer2 import SVFConfig, z_rows
from transformer2.data import collate, render
from transformer2.errors import ConfigError, UserError
from transformer2.policy import load_base, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine, _nucleus, choose_tokens
from transformer2.rollout.probe import check_decoding
from transformer2.types import Example

EOS = [1, 4]


@pytest.fixture(scope="module")
def model(llama_folder):
    model = load_base(str(llama_folder), "float32")
    # An untrained model ends one completion in 130 tokens: raise the odds, so that rows finish at different times.
    head = torch.nn.Linear(*reversed(model.lm_head.weight.shape))
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight * 30)
        head.bias.zero_()
        head.bias[EOS] = 6.0
    model.lm_head = head
    return model


@pytest.fixture(scope="module")
def tokenizer(llama_folder):
    return load_tokenizer(str(llama_folder))


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ["a", "a longer question", "b?", "something else altogether, and long", "c", "dd", "eee", "ffff"]
    examples = [Example(f"t/{i}", ({"role": "user", "content": t},), "") for i, t in enumerate(texts)]
    return collate(examples, [render(tokenizer, e) for e in examples], tokenizer.pad_token_id)


SAMPLING = Sampling(temperature=1.0, max_new_tokens=40)


def test_a_row_does_not_depend_on_its_batch(model, tokenizer, prompts):
    whole = completion_ids(HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=3))
    split = completion_ids(HFEngine(tokenizer, EOS, max_rows=3).generate(model, prompts, SAMPLING, seed=3))
    assert whole == split
    assert len({len(c) for c in whole}) > 3, "rows must finish at different times for this test to mean anything"
    assert completion_ids(HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=4)) != whole


class SmallMemory:
    """A limit on rows: the model's own forward, which raises what CUDA's allocator would above it."""

    def __init__(self, module, rows):
        self.rows, self.refused = rows, []
        self.hook = module.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module, args, kwargs):
        rows = len(kwargs["input_ids"])
        # Some steps in, so that there is something to undo.
        if rows > self.rows and kwargs["attention_mask"].shape[1] > 40:
            self.refused.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_the_rows_and_draws_the_same(model, tokenizer, prompts):
    whole = completion_ids(HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=3))
    engine, memory = HFEngine(tokenizer, EOS), SmallMemory(model, 4)
    try:
        with pytest.warns(UserWarning, match="continuing with 4 at a time"):
            assert completion_ids(engine.generate(model, prompts, SAMPLING, seed=3)) == whole
        assert engine.max_rows == 4 and len(memory.refused) == 1
        assert completion_ids(engine.generate(model, prompts, SAMPLING, seed=3)) == whole
        assert len(memory.refused) == 1, "the smaller number holds for the rest of the run"
        memory.rows = 1
        with pytest.warns(UserWarning, match="continuing with 1 at a time"):
            assert completion_ids(engine.generate(model, prompts, SAMPLING, seed=3)) == whole
        assert engine.max_rows == 1
        memory.rows = 0
        with pytest.raises(UserError, match=r"model\.memory\.max_rollout_rows"):
            engine.generate(model, prompts, SAMPLING, seed=3)
    finally:
        memory.hook.remove()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("CUDA error: out of memory"), MemoryError()])
def test_a_probe_without_memory_says_nothing_of_the_model(model, monkeypatch, error):
    monkeypatch.setattr("transformer2.rollout.probe.prefill", Mock(side_effect=error))
    with pytest.raises(type(error)):
        check_decoding(model, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_not_multiplied_row_by_row(model, tokenizer, prompts, dtype):
    """Strided last positions made torch expand the head to (rows, D, V) on the CPU."""
    policy = copy.deepcopy(model).to(dtype)
    seen = []
    hook = policy.lm_head.register_forward_hook(lambda module, args, out: seen.append(args[0].is_contiguous()))
    HFEngine(tokenizer, EOS).generate(policy, prompts, Sampling(0, max_new_tokens=2), seed=0)
    hook.remove()
    assert seen and all(seen)


def test_two_ranks_sample_what_one_process_does(model, tokenizer, prompts):
    whole = completion_ids(HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=3))
    for rank in (0, 1):
        rows = range(rank, len(prompts), 2)
        ids = [prompts.input_ids_BP[b][prompts.attention_mask_BP[b] == 1].tolist() for b in rows]
        mine = collate([prompts.examples[b] for b in rows], ids, tokenizer.pad_token_id, rows)
        assert completion_ids(HFEngine(tokenizer, EOS).generate(model, mine, SAMPLING, seed=3)) == whole[rank::2]


@pytest.mark.parametrize("max_rows", [None, 2])
def test_ranks_in_lockstep_run_equally_many_forward_passes(model, tokenizer, prompts, max_rows):
    """Two ranks as threads with unequal work: what each samples is what it samples alone."""
    parts = [(0, 3), (3, 8)]
    meeting, said, forwards = threading.Barrier(2), [False, False], [0, 0]

    def generate(rank, lockstep):
        first, last = parts[rank]
        rows = range(first, last)
        ids = [prompts.input_ids_BP[b][prompts.attention_mask_BP[b] == 1].tolist() for b in rows]
        mine = collate([prompts.examples[b] for b in rows], ids, tokenizer.pad_token_id, rows)

        def policy(**kwargs):
            forwards[rank] += 1
            return model(**kwargs)

        policy.config, policy.named_modules, policy.parameters = model.config, model.named_modules, model.parameters

        def any_rank(is_so):
            said[rank] = is_so
            meeting.wait(timeout=30)
            either = any(said)
            meeting.wait(timeout=30)
            return either

        engine = HFEngine(tokenizer, EOS, max_rows, any_rank if lockstep else None)
        return completion_ids(engine.generate(policy, mine, SAMPLING, seed=3))

    alone = [generate(rank, lockstep=False) for rank in (0, 1)]
    assert forwards[0] != forwards[1], "the work must be unequal for this test to mean anything"
    forwards[:] = [0, 0]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda rank: generate(rank, lockstep=True), (0, 1)))
    assert together == alone
    assert forwards[0] == forwards[1] > 0


def test_masks_cover_exactly_what_was_sampled_eos_included(model, tokenizer, prompts):
    rollouts = HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=0)
    for ids, finished in zip(completion_ids(rollouts), rollouts.finished_B.tolist(), strict=True):
        assert (ids[-1] in EOS) == finished
        assert not set(ids[:-1]) & set(EOS)
        assert finished or len(ids) == SAMPLING.max_new_tokens
    padding = rollouts.completion_ids_BC[rollouts.completion_mask_BC == 0]
    assert padding.eq(tokenizer.pad_token_id).all()


@pytest.mark.parametrize("max_rows", [None, 3])
def test_every_row_keeps_its_own_z_while_rows_leave(model, tokenizer, prompts, max_rows):
    """A mixed batch, sorted, split and shrunk, against each row alone."""
    policy = get_peft_model(copy.deepcopy(model), SVFConfig(target_modules="all-linear"))
    policy.add_adapter("other", SVFConfig(target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".svf_z." in name:
                parameter.normal_(0.0, 0.3)
    weights = torch.tensor([[0.0, 0.0], [1, 0], [0, 1], [0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]])
    engine, names = HFEngine(tokenizer, EOS, max_rows), ["default", "other"]
    with z_rows(policy, weights, names):
        mixed = completion_ids(engine.generate(policy, prompts, SAMPLING, seed=3))
        twice = completion_ids(engine.generate(policy, prompts.repeat(2), Sampling(0, max_new_tokens=20), seed=3))
    assert len({len(c) for c in mixed}) > 3
    for row, expected in enumerate(mixed):
        with z_rows(policy, weights[row].expand(8, -1), names):
            assert completion_ids(engine.generate(policy, prompts, SAMPLING, seed=3))[row] == expected
    assert twice[::2] == twice[1::2]
    with z_rows(policy, weights, names):
        greedy = completion_ids(engine.generate(policy, prompts, Sampling(0, max_new_tokens=20), seed=0))
    assert greedy == twice[::2]


def test_greedy_equals_transformers_generate(model, tokenizer, prompts):
    greedy = HFEngine(tokenizer, EOS).generate(model, prompts, Sampling(temperature=0, max_new_tokens=24), seed=0)
    theirs = model.generate(
        input_ids=prompts.input_ids_BP,
        attention_mask=prompts.attention_mask_BP,
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=EOS,
        pad_token_id=tokenizer.pad_token_id,
    )[:, prompts.input_ids_BP.shape[1] :]
    for ours, row in zip(completion_ids(greedy), theirs.tolist(), strict=True):
        assert row[: len(ours)] == ours


def test_sampling_follows_the_distribution():
    g = torch.Generator().manual_seed(0)
    logits_V = torch.randn(6, generator=g)
    n = 20_000
    tokens, logprobs = choose_tokens(logits_V.expand(n, -1), torch.rand(n, generator=g), Sampling(temperature=0.5))
    assert torch.allclose(logprobs, (logits_V / 0.5).log_softmax(-1)[tokens], atol=1e-5)
    frequency_V = torch.bincount(tokens, minlength=6) / n
    assert torch.allclose(frequency_V, (logits_V / 0.5).softmax(-1), atol=0.015)


def test_a_token_without_probability_is_never_drawn():
    logits_BV = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]]).expand(3, -1)
    edges_B = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert choose_tokens(logits_BV, edges_B, Sampling())[0].tolist() == [0, 2, 2]


def test_nucleus_keeps_the_smallest_sufficient_set():
    probs_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert _nucleus(probs_BV, 0.7)[0].gt(0).tolist() == [True, True, False, False]
    assert _nucleus(probs_BV, 0.01)[0].gt(0).tolist() == [True, False, False, False]


def test_non_finite_logits_name_the_prompt(model, tokenizer, prompts):
    original = model.lm_head.weight.clone()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    try:
        with pytest.raises(UserError, match="t/3"):  # the longest prompt comes first
            HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=0)
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(original)


def test_impossible_sampling_is_refused():
    for bad in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError):
            Sampling(**bad)


def test_rows_trims_to_what_is_there(model, tokenizer, prompts):
    rollouts = HFEngine(tokenizer, EOS).generate(model, prompts, SAMPLING, seed=0)
    part = rollouts.rows([4, 0])
    assert part.examples == (rollouts.examples[4], rollouts.examples[0])
    assert completion_ids(part) == [completion_ids(rollouts)[4], completion_ids(rollouts)[0]]
    assert part.completion_ids_BC.shape[1] == max(map(len, completion_ids(part)))
    assert part.prompt_mask_BP.any(0).all()


def test_no_eos_is_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError, match="eos_token"):
        HFEngine(tokenizer, [])


def test_no_tokenizer_eats_spaces_that_were_sampled(tokenizer, prompts):
    """transformers 5.0 cleans up whatever its tokenizer says; later ones where they are told to, as here."""
    cleaning = copy.deepcopy(tokenizer)
    cleaning.clean_up_tokenization_spaces = True
    cleaning.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = "if x != 3 : return ( 'a' , b ) . # do n't"
    ids = cleaning(text, add_special_tokens=False)["input_ids"]
    assert cleaning.decode(ids) != text
    rows = [[*ids, EOS[1]]] * len(prompts)
    rollouts = HFEngine(cleaning, EOS).packed(prompts, rows, [[0.0] * len(row) for row in rows])
    assert set(rollouts.completions) == {text}
