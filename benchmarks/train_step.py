"""A whole model's optimizer step on one batch of rollouts: SVF against PEFT LoRA r16 and against the reference.

    python benchmarks/run.py train_step

A step is what the module does with rollouts: hidden states, log-probabilities of the sampled tokens, REINFORCE loss,
backward, AdamW. The comparison with the reference adds the KL to the base, which costs us a pass of the same model with
its adapter off and the reference a pass of its second model. LoRA runs the very same step on the same modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _common import DEVICE, MIB, Row, interleave, peak_bytes, saved_bytes
from _models import MLP, embedded_model, random_llama, rollouts
from _reference import recomposed
from _steps import KL_COEF, forward_of, reference_step_of, step_of
from peft import LoraConfig
from transformers import PreTrainedModel

from transformer2.policy import build_policy
from transformer2.svf.config import SVFConfig

SPEED = {"factored": 1.05, "delta": 1.25}
FASTER = 5.0 if DEVICE.type == "cuda" else 1.3
ALL = (*MLP, "q_proj", "k_proj", "v_proj", "o_proj")


def measure(toy: bool = False) -> list[Row]:
    if toy:
        return _rows("random Llama, MLP", random_llama(64, 1, 256), MLP, (2, 8, 24), rounds=1)
    rows = _rows("random Llama, MLP", random_llama(), MLP, (4, 64, 192), rounds=9)
    if (tiny := embedded_model()) is not None:
        rows += _rows("embedded model, all linear layers", tiny, ALL, (64, 32, 16), rounds=11)
    return rows


def _rows(
    name: str, base: PreTrainedModel, modules: tuple[str, ...], shape: tuple[int, int, int], rounds: int
) -> list[Row]:
    batch = rollouts(*shape, base.config.vocab_size)
    advantages_B = torch.linspace(-1, 1, len(batch), device=DEVICE)
    configs: dict[str, Any] = {"LoRA": LoraConfig(r=16, target_modules=list(modules))}
    configs |= {form: SVFConfig(target_modules=list(modules), form=form, basis_cache="off") for form in SPEED}
    steps: dict[str, Callable[[], None]] = {}
    saved: dict[str, int] = {}
    for form, config in configs.items():
        policy = build_policy(copy.deepcopy(base), config)
        steps[form] = step_of(policy, batch, advantages_B, kl_coef=0.0)
        if form in SPEED:
            steps[f"{form} with KL"] = step_of(policy, batch, advantages_B, kl_coef=KL_COEF)
        steps[form]()
        forward = forward_of(policy, batch, advantages_B, kl_coef=0.0)
        saved[form] = saved_bytes(forward, [*policy.parameters(), *policy.buffers()])
    dense = copy.deepcopy(base)
    steps["reference with KL"] = reference_step_of(dense, recomposed(dense, modules), base, batch, advantages_B)
    peak = {form: peak_bytes(step) for form, step in steps.items()}
    times = interleave(steps, rounds, warmup=0)

    size = f"{shape[0]} x {shape[1] + shape[2]} tokens; LoRA {times.median('LoRA'):.2f} s"
    rows = [
        Row(f"{name}: {form} / LoRA r16, seconds", times.ratio(form, "LoRA"), at_most=limit, note=size)
        for form, limit in SPEED.items()
    ]
    for what, sizes in {"saved for backward": saved, "peak allocated": peak}.items():
        for form in SPEED:
            limit = 1.0 if what.startswith("saved") else None
            note = f"{sizes[form] / MIB:.1f} of {sizes['LoRA'] / MIB:.1f} MiB"
            rows.append(
                Row(f"{name}: {form} / LoRA r16, {what}", sizes[form] / sizes["LoRA"], at_most=limit, note=note)
            )
    for form in ("delta with KL", "factored with KL"):
        faster = times.ratio("reference with KL", form)
        note = f"{times.median('reference with KL'):.2f} of {times.median(form):.2f} s"
        rows.append(Row(f"{name}: reference / {form}, seconds", faster, at_least=FASTER, note=note))
    note = f"{peak['reference with KL'] / MIB:.0f} of {peak['delta with KL'] / MIB:.0f} MiB"
    lighter = peak["reference with KL"] / peak["delta with KL"]
    return [*rows, Row(f"{name}: reference / delta with KL, peak allocated", lighter, note=note)]
