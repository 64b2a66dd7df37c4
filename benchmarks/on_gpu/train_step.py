"""A whole optimizer step with its KL at equal batch: SVF against PEFT LoRA r16 and against the reference's algorithm.

Forward, KL to the base, backward and AdamW on the MLP of all layers, in bf16, medians over rounds. LoRA's base is the
same model with its adapter off, as ours is. The reference keeps U, V, W', a dense gradient and a second model (60 GB
for 32 layers before activations), so that comparison runs on fewer layers on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _common import DEVICE, Row, allocated, free_memory, interleave, peak_bytes
from _llama8b import model, num_layers, random_factors, svf_policy, training_batch
from _models import MLP
from _reference import recomposed
from _steps import KL_COEF, reference_step_of, step_of
from peft import LoraConfig

from transformer2.policy import build_policy
from transformer2.types import Rollouts

SECONDS = {"delta": 1.25, "factored": 1.05}
FASTER = 5.0
Step = Callable[[], None]


def planned(toy: bool) -> dict[str, Row]:
    rows = {}
    for form, limit in SECONDS.items():
        rows[f"{form} seconds"] = Row(f"train step: {form} / LoRA r16, seconds", None, at_most=limit)
    for form in SECONDS:
        rows[f"{form} peak"] = Row(f"train step: {form} / LoRA r16, peak activation memory", None, at_most=1.0)
    for form in SECONDS:
        rows[f"reference {form}"] = Row(f"train step: reference / {form}, seconds", None, at_least=FASTER)
    rows["reference memory"] = Row("train step: reference / delta, weights and peak", None)
    return rows


def measure(toy: bool) -> Iterator[tuple[str, float, str]]:
    layers, fewer = num_layers(toy), num_layers(toy, of=8)
    batch = training_batch(toy)
    advantages_B = torch.linspace(-1, 1, len(batch), device=DEVICE)
    size = f"{len(batch)} x {batch.prompt_ids_BP.shape[1] + batch.completion_ids_BC.shape[1]} tokens"

    def svf(form: str, layers: int) -> Callable[[], Step]:
        return lambda: step_of(svf_policy(model(layers, toy), form), batch, advantages_B, KL_COEF)

    def lora() -> Step:
        policy = build_policy(model(layers, toy), LoraConfig(r=16, target_modules=list(MLP)))
        return step_of(policy, batch, advantages_B, KL_COEF)

    of_lora = _cost(lora, toy)
    for form in SECONDS:
        cost = _cost(svf(form, layers), toy)
        note = f"{1e3 * cost.seconds:.0f} of {1e3 * of_lora.seconds:.0f} ms; {layers} layers, {size}"
        yield f"{form} seconds", cost.seconds / of_lora.seconds, note
        note = f"{cost.peak / 1e9:.1f} of {of_lora.peak / 1e9:.1f} GB alongside the weights"
        yield f"{form} peak", cost.peak / of_lora.peak, note

    of_reference = _cost(lambda: _reference_step(fewer, toy, batch, advantages_B), toy)
    for form in SECONDS:
        cost = _cost(svf(form, fewer), toy)
        note = f"{1e3 * of_reference.seconds:.0f} of {1e3 * cost.seconds:.0f} ms; {fewer} layers, {size}"
        yield f"reference {form}", of_reference.seconds / cost.seconds, note
        if form == "delta":
            note = f"{of_reference.whole / 1e9:.1f} of {cost.whole / 1e9:.1f} GB; {fewer} layers"
            yield "reference memory", of_reference.whole / cost.whole, note


@dataclass(frozen=True)
class _Cost:
    """Median seconds of a step, bytes of what is resident, and the peak next to it."""

    seconds: float
    resident: int
    peak: int

    @property
    def whole(self) -> int:
        """Bytes at the worst moment."""
        return self.resident + self.peak


def _cost(build: Callable[[], Step], toy: bool) -> _Cost:
    free_memory()  # of the step before
    before = allocated()
    step = build()
    times = interleave({"step": step}, rounds=1 if toy else 5, warmup=1 if toy else 2)
    free_memory()
    return _Cost(times.median("step"), allocated() - before, peak_bytes(step))


def _reference_step(layers: int, toy: bool, batch: Rollouts, advantages_B: torch.Tensor) -> Step:
    dense, base = model(layers, toy), model(layers, toy)
    return reference_step_of(dense, recomposed(dense, MLP, random_factors()), base, batch, advantages_B)
