"""What `transformer2 plan` says of memory against the peak of a step and of rollouts on the device.

The planner counts tensors; so does the allocator's peak of allocated bytes. What the allocator reserves beyond them
(fragments) and the CUDA context are in neither. One row is padded, so that attention runs masked as in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _common import DEVICE, Row, free_memory, peak_bytes
from _llama8b import NEVER, llama_config, model, num_layers, svf_policy, training_batch
from _models import MLP, SilentTokenizer, rollouts
from _steps import KL_COEF, step_of
from peft import LoraConfig

from transformer2.plan.job import Job
from transformer2.plan.memory import memory
from transformer2.plan.shape import model_shape
from transformer2.plan.terms import total
from transformer2.policy import build_policy, checkpointed
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.modes import merged_for_rollout
from transformer2.types import PromptBatch, Rollouts

WITHIN = 10.0  # per cent
CASES = {
    "rollout": "merged rollouts",
    "delta": "step, delta",
    "checkpointed": "step, delta, checkpointed",
    "factored": "step, factored",
    "lora": "step, LoRA r16",
}


def planned(toy: bool) -> dict[str, Row]:
    return {
        key: Row(f"plan: {what}, distance from the measured peak", None, "%", at_most=WITHIN)
        for key, what in CASES.items()
    }


def measure(toy: bool) -> Iterator[tuple[str, float, str]]:
    layers = num_layers(toy)
    batch = _padded(training_batch(toy))
    job = _job(layers, batch, toy)

    def row(key: str, job: Job, phases: tuple[str, ...], measured: float) -> tuple[str, float, str]:
        counted = memory(job)
        expected = total(counted.resident) + max(total(counted.phases[phase]) for phase in phases)
        note = f"{expected / 1e9:.2f} GB said, {measured / 1e9:.2f} GB measured; {layers} layers, {job.rows} rows"
        return key, 100 * abs(expected / measured - 1), note

    policy = svf_policy(model(layers, toy))
    drawing = job.with_(global_rows=4 if toy else 64)
    peak = _peak(policy, partial(_draw, policy, drawing))
    yield row("rollout", drawing, ("compose", "prefill", "decode"), peak)
    yield row("delta", job, ("update",), _peak_of_step(policy, batch))
    yield row("checkpointed", job.with_(checkpointing=True), ("update",), _peak_of_step(policy, batch, again=True))
    del policy
    free_memory()
    peak = _peak_of_step(svf_policy(model(layers, toy), "factored"), batch)
    yield row("factored", job.with_(form="factored"), ("update",), peak)
    free_memory()
    lora = build_policy(model(layers, toy), LoraConfig(r=16, target_modules=list(MLP)))
    yield row("lora", job.with_(svf=False, rank=16), ("update",), _peak_of_step(lora, batch))


def _job(layers: int, batch: Rollouts, toy: bool) -> Job:
    rows, prompt, completion = len(batch), batch.prompt_ids_BP.shape[1], batch.completion_ids_BC.shape[1]
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(llama_config(layers, toy)))
        shape = model_shape(folder, {"peft_type": "SVF", "target_modules": list(MLP)}, "bfloat16")
    return Job(
        shape=shape,
        svf=True,
        rank=0,
        form="delta",
        quantisation=None,
        strategy="single",
        gpus=1,
        nodes=1,
        global_rows=rows,
        eval_rows=1,
        max_rollout_rows=None,
        pictures=0,
        prompt_tokens=prompt,
        completion_tokens=completion,
        mean_completion=completion,
        micro_batch_tokens=rows * (prompt + completion),
        full_kl=True,
        kl=True,
        merge_rollouts=True,
        elsewhere=False,
        checkpointing=False,
        sampled=True,
        row_gradients=False,
    )


def _padded(batch: Rollouts) -> Rollouts:
    mask_BP = batch.prompt_mask_BP.clone()
    mask_BP[0, 0] = 0
    return replace(batch, prompt_mask_BP=mask_BP)


def _peak(policy: Any, run: Callable[[], object]) -> float:
    """Bytes at the worst moment of `run`: the policy's own and what is allocated alongside them."""
    tensors = [*policy.parameters(), *policy.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values()) + peak_bytes(run)


def _peak_of_step(policy: Any, batch: Rollouts, again: bool = False) -> float:
    advantages_B = torch.linspace(-1, 1, len(batch), device=DEVICE)
    step = step_of(policy, batch, advantages_B, KL_COEF)
    with checkpointed(policy) if again else nullcontext():
        return _peak(policy, step)


def _draw(policy: Any, job: Job) -> None:
    batch = _padded(rollouts(job.rollout_rows, job.prompt_tokens, 1, job.shape.V))
    engine = HFEngine(SilentTokenizer(), eos_ids=[NEVER])  # type: ignore[arg-type]  # all it uses
    with merged_for_rollout(policy):
        prompts = PromptBatch(batch.examples, batch.prompt_ids_BP, batch.prompt_mask_BP)
        engine.generate(policy, prompts, Sampling(max_new_tokens=job.completion_tokens), seed=0)
