"""A whole RL step on pictures against the same step on text of equally many tokens, on the embedded vision model.

    python benchmarks/run.py vision

64 questions about signs, 16 new tokens each: rollouts, log-probabilities with the KL to the base, backward. `text` is
the very same batch with words in the places of the pictures' tokens. A picture is encoded at its first step (`new`) and
its features are kept (`seen`): z does not touch the tower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from _common import Row, interleave

from transformer2 import tasks
from transformer2.data.prompts import collate, render
from transformer2.module.scores import score
from transformer2.policy import build_policy, eos_token_ids, lm_head, load_base, load_tokenizer
from transformer2.rl.loss import reinforce_loss
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.types import PromptBatch
from transformer2.vision import FIRST, pictures_of

ROWS, BUDGET = 64, 16


def measure(toy: bool = False) -> list[Row]:
    rows = 8 if toy else ROWS
    tokenizer = load_tokenizer("tiny_vision")
    policy = build_policy(load_base("tiny_vision", "float32"), {"peft_type": "SVF", "target_modules": "all-linear"})
    engine, head, inputs = HFEngine(tokenizer, eos_token_ids(policy, tokenizer)), lm_head(policy), pictures_of(policy)
    assert inputs is not None
    examples = tasks.get("tiny_textvqa").examples("train")[:rows]
    ids = [render(tokenizer, e) for e in examples]
    seen = collate(examples, ids, tokenizer.pad_token_id)
    words = torch.randint(10, 200, seen.input_ids_BP.shape, generator=torch.Generator().manual_seed(0))
    text = replace(seen, input_ids_BP=torch.where(seen.input_ids_BP >= FIRST, words, seen.input_ids_BP))

    def step(batch: PromptBatch) -> None:
        drawn = engine.generate(policy, batch, Sampling(max_new_tokens=BUDGET), 0)
        logprobs_N, kl_N, _ = score(policy, head, drawn, "full")
        mask_BC, advantages_B = drawn.completion_mask_BC.bool(), torch.linspace(-1, 1, len(batch))
        reinforce_loss(logprobs_N, kl_N, mask_BC, advantages_B, kl_coef=0.1, num_rows=len(batch)).backward()

    def new() -> None:
        inputs._features.clear()
        step(seen)

    forms: dict[str, Callable[[], Any]] = {"text": lambda: step(text), "new": new, "seen": lambda: step(seen)}
    times = interleave(forms, 1 if toy else 11)
    share = int((seen.input_ids_BP >= FIRST).sum()) / int(seen.attention_mask_BP.sum())
    note = f"{100 * share:.0f} % of the prompts' tokens are pictures'; text {times.median('text'):.2f} s"
    return [
        Row(f"tiny_vision, {rows} rows: a step on pictures it has {what} / on text", times.ratio(form, "text"), **goal)
        for form, what, goal in (
            ("new", "not seen before", {"at_most": 1.3, "note": note}),
            ("seen", "seen", {"note": note}),
        )
    ]
