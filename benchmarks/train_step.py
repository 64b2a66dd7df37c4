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
from _reference import recompose_all, recomposed
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from transformer2.module import predicting_states
from transformer2.policy import build_policy, lm_head, reference
from transformer2.rl.kl import full_kl
from transformer2.rl.logprobs import chunk_tokens, score_tokens
from transformer2.rl.loss import reinforce_loss, sum_by_row
from transformer2.svf.config import SVFConfig
from transformer2.svf.model import svf_layers
from transformer2.types import Rollouts

KL_COEF = 0.2
SPEED = {"factored": 1.05, "delta": 1.25, "merged": None}
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
        steps[form] = _step(policy, batch, advantages_B, kl_coef=0.0)
        if form in ("delta", "factored"):
            steps[f"{form} with KL"] = _step(policy, batch, advantages_B, kl_coef=KL_COEF)
        steps[form]()
        forward = _forward(policy, lm_head(policy), batch, advantages_B, kl_coef=0.0)
        with torch.no_grad():
            forward()  # composes W' for the z of now
        resident = [*policy.parameters(), *policy.buffers(), *_composed(policy)]
        saved[form] = saved_bytes(forward, resident)
    steps["reference with KL"] = _reference_step(copy.deepcopy(base), base, modules, batch, advantages_B)
    peak = {form: peak_bytes(step) for form, step in steps.items()}
    times = interleave(steps, rounds, warmup=0)

    size = f"{shape[0]} x {shape[1] + shape[2]} tokens; LoRA {times.median('LoRA'):.2f} s"
    rows = [
        Row(f"{name}: {form} / LoRA r16, seconds", times.ratio(form, "LoRA"), at_most=limit, note=size)
        for form, limit in SPEED.items()
    ]
    for what, sizes in {"saved for backward": saved, "peak allocated": peak}.items():
        for form in SPEED:
            limit = 1.0 if what.startswith("saved") and form != "merged" else None
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


def _composed(policy: Any) -> list[Tensor]:
    """Weights W' of the merged form: as many bytes whatever the batch, so no activations."""
    return [layer._composed[2] for _, layer in svf_layers(policy) if layer._composed is not None]


def _forward(
    policy: Any, head: Callable[[Tensor], Tensor], batch: Rollouts, advantages_B: Tensor, kl_coef: float
) -> Callable[[], Tensor]:
    sampled_BC = batch.completion_mask_BC.bool()

    def forward() -> Tensor:
        ref_hidden_ND = None
        if kl_coef:
            with torch.no_grad(), reference(policy):
                ref_hidden_ND = predicting_states(policy, batch)
        scores = score_tokens(
            predicting_states(policy, batch),
            batch.completion_ids_BC[sampled_BC],
            head,
            ref_hidden_ND,
            chunk=chunk_tokens(policy.config.vocab_size),
        )
        logprobs_B, kl_B = sum_by_row(scores.logprobs_N, sampled_BC), sum_by_row(scores.kl_N, sampled_BC)
        return reinforce_loss(logprobs_B, advantages_B, kl_B, kl_coef=kl_coef, num_rows=len(batch))[0]

    return forward


def _step(policy: Any, batch: Rollouts, advantages_B: Tensor, kl_coef: float) -> Callable[[], None]:
    forward = _forward(policy, lm_head(policy), batch, advantages_B, kl_coef)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _reference_step(
    model: PreTrainedModel,
    base: PreTrainedModel,
    modules: tuple[str, ...],
    batch: Rollouts,
    advantages_B: Tensor,
) -> Callable[[], None]:
    layers = recomposed(model, modules)
    optimizer = torch.optim.AdamW([layer.z_R for layer in layers], lr=1e-6)
    prompt = batch.prompt_ids_BP.shape[1]

    def step() -> None:
        recompose_all(layers)
        for i in range(len(batch)):
            ids_1T = torch.cat([batch.prompt_ids_BP[i], batch.completion_ids_BC[i]])[None]
            all_CV = model(input_ids=ids_1T, use_cache=False).logits[0, prompt - 1 : -1].log_softmax(-1)
            with torch.no_grad():
                ref_CV = base(input_ids=ids_1T, use_cache=False).logits[0, prompt - 1 : -1].log_softmax(-1)
            logprob = all_CV.gather(-1, batch.completion_ids_BC[i][:, None]).sum()
            kl = full_kl(all_CV, ref_CV).sum()
            ((KL_COEF * kl - advantages_B[i] * logprob) / len(batch)).backward()
        for layer in layers:
            layer.backward_to_z()
        optimizer.step()
        optimizer.zero_grad()

    return step
