"""SVF's delta form on an NF4 base against the same policy on bf16: seconds of a step and memory of the whole.

The linear layers of all decoder blocks become bitsandbytes' Linear4bit (nf4, double quantisation), the bases P stay. No
checkpoint is read: the weights that are quantised are those that ran in bf16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from _common import DEVICE, Row, allocated, free_memory, interleave, peak_bytes
from _llama8b import DTYPE, model, num_layers, svf_policy, training_batch
from _steps import KL_COEF, step_of
from torch import nn


def planned(toy: bool) -> dict[str, Row]:
    return {
        "seconds": Row("train step: delta on NF4 / delta on bf16, seconds", None),
        "memory": Row("train step: delta on NF4 / delta on bf16, weights and peak", None),
        "weights": Row("train step: delta on NF4 / delta on bf16, weights and bases", None),
    }


def measure(toy: bool) -> Iterator[tuple[str, float | None, str]]:
    if importlib.util.find_spec("bitsandbytes") is None:
        for key in planned(toy):
            yield key, None, "not measured: bitsandbytes is not installed"
        return
    layers = num_layers(toy)
    batch = training_batch(toy)
    advantages_B = torch.linspace(-1, 1, len(batch), device=DEVICE)
    empty = allocated()
    policy = svf_policy(model(layers, toy))
    step = step_of(policy, batch, advantages_B, KL_COEF)

    def cost() -> tuple[float, int, int]:
        times = interleave({"step": step}, rounds=1 if toy else 5, warmup=1 if toy else 2)
        free_memory()
        return times.median("step"), allocated() - empty, peak_bytes(step)

    seconds, resident, peak = cost()
    _to_nf4(policy)
    free_memory()
    nf4_seconds, nf4_resident, nf4_peak = cost()
    note = f"{1e3 * nf4_seconds:.0f} of {1e3 * seconds:.0f} ms; {layers} layers, {len(batch)} rows"
    yield "seconds", nf4_seconds / seconds, note
    both, nf4_both = resident + peak, nf4_resident + nf4_peak
    yield "memory", nf4_both / both, f"{nf4_both / 1e9:.1f} of {both / 1e9:.1f} GB"
    if DEVICE.type == "cuda":
        yield "weights", nf4_resident / resident, f"{nf4_resident / 1e9:.1f} of {resident / 1e9:.1f} GB"
    else:
        yield "weights", None, "not measured: weights are counted on a GPU only"


def _to_nf4(policy: Any) -> None:
    """Quantise the linear layers of the decoder blocks in place, inside SVF layers too; lm_head stays."""
    for path, linear in list(policy.named_modules()):
        if type(linear) is nn.Linear and ".layers." in path:
            parent, _, leaf = path.rpartition(".")
            setattr(policy.get_submodule(parent), leaf, _nf4(linear))


def _nf4(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=DTYPE, quant_type="nf4", device="meta"
    )
    # Moving the parameter to its device is what quantises it, also when it is there already.
    packed.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=packed
    ).to(DEVICE)
    return packed
