"""The planner's bytes against those of a real training step, within 10 %."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import grouped
from measured import measured_and_planned, small_model

from transformer2.plan.terms import total

WITHIN = 0.1
SVF: dict[str, Any] = {"peft_type": "SVF", "target_modules": "mlp"}
CASES: dict[str, tuple[dict[str, Any], torch.dtype, dict[str, Any]]] = {
    "mlp, delta": ({}, torch.float32, SVF),
    "attention, factored, bf16": ({}, torch.bfloat16, SVF | {"target_modules": "attention", "form": "factored"}),
    "all, bf16": ({}, torch.bfloat16, SVF | {"target_modules": "all-linear"}),
    "upper half": ({}, torch.float32, SVF | {"layers_to_transform": [2, 3]}),
    "LoRA, bf16": ({}, torch.bfloat16, {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"]}),
    "unmerged rollouts": ({"merge_rollouts": False, "micro_batch_tokens": 256}, torch.float32, SVF),
    "checkpointed": ({"activation_checkpointing": True}, torch.float32, SVF),
    "sampled KL": ({"kl": "k2", "activation_checkpointing": True}, torch.float32, SVF),
}


EVERY_DAY = ("mlp, delta", "LoRA, bf16", "checkpointed")  # the others: nox -s slow


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in EVERY_DAY else pytest.mark.slow) for n in CASES])
def test_small_models(name: str, tmp_path: Path) -> None:
    options, dtype, adapter = CASES[name]
    base = small_model(tmp_path / "base", dtype, qwen=name == "mlp, delta")
    model = {"base": base, "adapter": adapter, "micro_batch_tokens": 2048, "max_new_tokens": 24, "kl_coef": 0.1}
    data = {"task": "tiny_math", "base": base, "batch_size": 16, "max_new_tokens": 24}
    module, planned = measured_and_planned(tmp_path, grouped(**model | options), data)
    assert planned.peak == pytest.approx(module.peak, rel=WITHIN)
    # Optimizer and gradient come into being in the step.
    here = total(t for t in planned.resident if t.part not in ("optimizer", "gradient"))
    assert here == pytest.approx(module.resident, rel=0.03)


@pytest.mark.parametrize("targets", ["all-linear", "mlp"])
def test_the_embedded_model(targets: str, tmp_path: Path) -> None:
    model = {"base": "tiny", "adapter": {"peft_type": "SVF", "target_modules": targets}}
    module, planned = measured_and_planned(tmp_path, model, {"task": "tiny_math", "base": "tiny", "batch_size": 32})
    assert planned.peak == pytest.approx(module.peak, rel=WITHIN)
