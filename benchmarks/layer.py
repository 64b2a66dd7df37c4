"""One linear layer, one optimizer step: seconds of every SVF form against the frozen layer.

    python benchmarks/run.py layer

A step is 8 micro-batches of 512 tokens, forward and backward to the input and to z, after which z changes; so the
reference composes W' once per step. With 4096 tokens a step is 8 r tokens long; 256 answers of 300 tokens on an 8B
model are 19 r.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _common import DEVICE, Row, interleave
from _reference import RecomposedLinear
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from transformer2.svf.basis import compute_basis
from transformer2.svf.config import SVFConfig
from transformer2.svf.layer import SVFLayer

TARGETS = {"factored": 1.40, "delta": 1.75}
SHAPES = {"rho 0.29 in": (1792, 512), "rho 0.29 out": (512, 1792), "rho 1": (1024, 1024)}  # (m, n)


def measure(toy: bool = False) -> list[Row]:
    rounds, tokens, micro_batches = (1, 32, 2) if toy else (7, 512, 8)
    rows = []
    for name, (m, n) in SHAPES.items():
        m, n = (m // 16, n // 16) if toy else (m, n)
        rows += _shape_rows(name, m, n, tokens, micro_batches, rounds)
    return rows


def _shape_rows(name: str, m: int, n: int, tokens: int, micro_batches: int, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    linear = nn.Linear(n, m, bias=False, device=DEVICE).requires_grad_(False)
    batches = [torch.randn(tokens, n, device=DEVICE, requires_grad=True) for _ in range(micro_batches)]
    grads = [torch.randn(tokens, m, device=DEVICE) for _ in range(micro_batches)]
    basis = compute_basis(linear.weight)

    steps: dict[str, Callable[[], None]] = {"frozen": _step(linear, batches, grads)}
    for form in TARGETS:
        steps[form] = _step(SVFLayer(linear, "default", SVFConfig(form=form), basis), batches, grads)
    lora = inject_adapter_in_model(LoraConfig(r=16, target_modules=["0"]), nn.Sequential(linear))
    steps["PEFT LoRA r16"] = _step(lora, batches, grads)
    steps["reference"] = _reference_step(RecomposedLinear(linear), batches, grads)

    times = interleave(steps, rounds)
    note = f"{m} x {n}, {micro_batches} x {tokens} tokens; frozen {1e3 * times.median('frozen'):.0f} ms"
    return [
        Row(
            f"{name}: {form}",
            times.ratio(form, "frozen"),
            at_most=TARGETS.get(form) if name.startswith("rho 0.29") else None,
            note=note,
        )
        for form in steps
        if form != "frozen"
    ]


def _step(layer: nn.Module, batches: list[Tensor], grads: list[Tensor]) -> Callable[[], None]:
    trained = [p for p in layer.parameters() if p.requires_grad]

    def step() -> None:
        for x, grad in zip(batches, grads, strict=True):
            x.grad = None
            layer(x).backward(grad)
        _descend(trained)

    return step


def _reference_step(layer: RecomposedLinear, batches: list[Tensor], grads: list[Tensor]) -> Callable[[], None]:
    def step() -> None:
        layer.recompose()
        for x, grad in zip(batches, grads, strict=True):
            x.grad = None
            layer(x).backward(grad)
        layer.backward_to_z()
        _descend([layer.z_R])

    return step


@torch.no_grad()
def _descend(trained: list[nn.Parameter]) -> None:
    for p in trained:
        assert p.grad is not None
        p -= 1e-6 * p.grad.sign()
        p.grad = None
