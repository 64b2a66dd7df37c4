"""Requests that join and leave a running batch draw what they draw alone, each under its own z."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from transformer2 import tasks, tiny
from transformer2.adaptation.members import members
from transformer2.data.prompts import collate, render
from transformer2.errors import UserError
from transformer2.experts import load_experts
from transformer2.policy import build_policy, eos_token_ids, load_base, load_tokenizer
from transformer2.rollout import continuous
from transformer2.rollout.base import Sampling
from transformer2.rollout.continuous import ContinuousBatch, Row
from transformer2.rollout.ending import Ending
from transformer2.rollout.hf import HFEngine
from transformer2.svf.layer import svf_layers
from transformer2.svf.rows import z_rows

BUDGET = 24


@pytest.fixture(scope="module")
def world():
    """The embedded model with its experts, prompts of all kinds, and one z for each: experts and the base in turn."""
    tokenizer, policy = load_tokenizer("tiny"), build_policy(load_base("tiny"), {"target_modules": "all-linear"})
    experts = load_experts([tiny.expert_path(name) for name in tiny.EXPERTS])
    examples = [
        e for name in ("tiny_math", "tiny_code", "tiny_reasoning") for e in tasks.get(name).examples("test")[:8]
    ]
    random.Random(0).shuffle(examples)
    ids = [render(tokenizer, e) for e in examples]
    with members(policy, experts) as names:
        weights_BK = torch.eye(4)[[i % 4 for i in range(len(ids))]]
        layers = [layer for _, layer in svf_layers(policy)]
        z = [
            {x: sum(w * x.detached_delta([n]) for w, n in zip(row, names, strict=True)) for x in layers}
            for row in weights_BK
        ]
        yield policy, tokenizer, examples, ids, z, (weights_BK, names)


def rows_of(world, temperature=0.0, stop=(), **options):
    policy, tokenizer, _, ids, z, _ = world
    ending = Ending(tokenizer, eos_token_ids(policy, tokenizer), stop)
    sampling = Sampling(temperature, max_new_tokens=BUDGET)
    return [Row(p, d, sampling, ending, seed=b, **options) for b, (p, d) in enumerate(zip(ids, z, strict=True))]


def run(policy, rows, at_once=64, arrivals=None):
    """Run all rows; `arrivals` of them come before each step (all at once: None)."""
    batch, coming, widest = ContinuousBatch(policy, at_once), list(rows), 0
    while coming or not batch.is_idle:
        for _ in range(len(coming) if arrivals is None else arrivals.randrange(3)):
            if coming:
                batch.submit(coming.pop(0))
        batch.step()
        widest = max(widest, len(batch.rows))
    return widest


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_draws_in_any_company_what_it_draws_alone(world, temperature):
    alone = rows_of(world, temperature)
    for row in alone:
        run(world[0], [row])
    together = rows_of(world, temperature)
    assert 4 < run(world[0], together, at_once=7, arrivals=random.Random(1)) <= 7
    assert [row.tokens for row in together] == [row.tokens for row in alone]
    assert {row.finish_reason for row in together} == {"stop"}
    torch.testing.assert_close(
        [x for r in together for x in r.logprobs], [x for r in alone for x in r.logprobs], rtol=0, atol=1e-3
    )


def test_rows_under_their_own_z_say_what_z_rows_says(world):
    policy, tokenizer, examples, ids, _, (weights_BK, names) = world
    engine = HFEngine(tokenizer, eos_token_ids(policy, tokenizer))
    with z_rows(policy, weights_BK, names, mix="raw"):
        expected = engine.generate(
            policy, collate(examples, ids, engine.pad_id), Sampling(0.0, max_new_tokens=BUDGET), 0
        )
    rows = rows_of(world)
    run(policy, rows, arrivals=random.Random(2))
    assert [row.text for row in rows] == list(expected.completions)
    assert len({row.text for row in rows_of_one_prompt(world)}) > 1  # and z matters


def rows_of_one_prompt(world):
    policy, tokenizer, _, ids, z, _ = world
    rows = [Row(ids[0], d, Sampling(0.0, max_new_tokens=BUDGET), Ending(tokenizer, [1])) for d in z[:4]]
    run(policy, rows)
    return rows


def test_a_stop_string_and_a_cancelled_row_end_alone(world):
    whole = rows_of(world)
    run(world[0], whole)
    stopped = rows_of(world, stop=["####"])
    batch = ContinuousBatch(world[0])
    for row in stopped:
        batch.submit(row)
    batch.step()
    stopped[1].end("cancelled")
    while not batch.is_idle:
        batch.step()
    assert stopped[1].finish_reason == "cancelled" and len(stopped[1].tokens) == 1
    others = [(s, w) for i, (s, w) in enumerate(zip(stopped, whole, strict=True)) if i != 1]
    assert any("####" in w.text for _, w in others)
    assert all(s.text == w.text.partition("####")[0] for s, w in others)


def test_a_row_joins_between_two_tokens_and_frees_its_place(world):
    first, second = rows_of(world)[:2]
    batch = ContinuousBatch(world[0])
    batch.submit(first)
    batch.step()
    batch.submit(second)
    batch.step()
    assert (len(first.tokens), len(second.tokens)) == (2, 1)
    while not batch.is_idle:
        batch.step()
    assert batch.rows == [] or all(row.finish_reason for row in batch.rows)


def test_rows_wait_until_the_cache_has_room_and_a_large_one_runs_alone(world):
    rows = rows_of(world)
    batch = ContinuousBatch(world[0], max_tokens=max(row.size for row in rows) * 2)
    for row in rows:
        batch.submit(row)
    while not batch.is_idle:
        batch.step()
        alive = [row for row in batch.rows if row.finish_reason is None]
        assert len(alive) * max((row.size for row in alive), default=0) <= batch.max_tokens
    small = ContinuousBatch(world[0], max_tokens=1)
    (row,) = rows_of(world)[:1]
    small.submit(row)
    small.step()
    assert row.tokens


def test_a_damaged_z_ends_its_own_row(world):
    rows = rows_of(world)[:3]
    layer = next(iter(rows[1].deltas))
    rows[1].deltas = {**rows[1].deltas, layer: rows[1].deltas[layer] * float("nan")}
    alone = rows_of(world)[:3]
    run(world[0], [alone[0]])
    run(world[0], rows)
    assert rows[1].finish_reason == "error" and isinstance(rows[1].error, UserError)
    assert rows[0].tokens == alone[0].tokens and rows[2].finish_reason == "stop"


def test_an_error_of_the_model_ends_the_rows_it_met_and_no_more(world):
    policy = world[0]
    rows, batch = rows_of(world)[:3], ContinuousBatch(policy)
    broken = Row([10**9], rows[0].deltas, rows[0].sampling, rows[0].ending)  # no such token
    for row in (rows[0], rows[1]):
        batch.submit(row)
    batch.step()
    batch.submit(broken)
    while not batch.is_idle:
        batch.step()
    assert broken.finish_reason == "error" and isinstance(broken.error, IndexError)
    assert [row.finish_reason for row in rows[:2]] == ["stop", "stop"]


def test_of_rows_that_join_together_those_that_fail_alone_end(world):
    policy, rows = world[0], rows_of(world)[:4]
    alone = rows_of(world)[:4]
    for row in alone:
        run(policy, [row])
    broken = [Row([10**9 + i], rows[0].deltas, rows[0].sampling, rows[0].ending) for i in range(2)]
    run(policy, [rows[0], broken[0], *rows[1:], broken[1]])
    assert [row.tokens for row in rows] == [row.tokens for row in alone]
    assert all(isinstance(row.error, IndexError) for row in broken) and broken[0].error is not broken[1].error


def test_what_fails_only_together_ends_all_of_it(world, monkeypatch):
    whole = continuous._prefill

    def one_at_a_time(policy, rows):
        if len(rows) > 1:
            raise RuntimeError("no batches here")
        return whole(policy, rows)

    monkeypatch.setattr(continuous, "_prefill", one_at_a_time)
    rows = rows_of(world)[:3]
    run(world[0], rows)
    assert [row.finish_reason for row in rows] == ["error"] * 3, "or no step would ever move them"


def test_out_of_memory_lets_rows_wait_and_draws_the_same(world, monkeypatch):
    alone = rows_of(world, 1.0)
    for row in alone:
        run(world[0], [row])
    original = continuous.next_logits

    def no_room(policy, ids, *args):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return original(policy, ids, *args)

    monkeypatch.setattr(continuous, "next_logits", no_room)
    rows = rows_of(world, 1.0)
    with pytest.warns(UserWarning, match="out of memory with"):
        widest = run(world[0], rows)
    assert widest > 3 and [row.tokens for row in rows] == [row.tokens for row in alone]
    assert {row.finish_reason for row in rows} == {"stop"}


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=6)),
    "no cache of keys": lambda: MambaForCausalLM(
        MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=64)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_caches_join_or_wait(world, name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ending, sampling = Ending(world[1], [63]), Sampling(0.0, max_new_tokens=12)

    def rows():
        lengths = random.Random(3)
        return [
            Row([lengths.randrange(60) for _ in range(lengths.randrange(2, 15))], {}, sampling, ending)
            for _ in range(9)
        ]

    alone, together = rows(), rows()
    for row in alone:
        run(model, [row])
    run(model, together, at_once=4, arrivals=random.Random(4))
    assert [row.tokens for row in together] == [row.tokens for row in alone]
