"""Seconds and bytes on the wire, term by term, from FLOPs and bytes, a device's stated figures and a stated share.

    seconds = FLOPs / (peak FLOP/s x share),  bytes / (peak bytes/s x share)

What is assumed and was not measured (no GPU was at hand): the shares of the peaks, the launch time of a layer in eager
decoding, and the rate of cuSOLVER's eigendecomposition. Vendors' figures are dense ones. `cpu` is one core as measured
in docs/log.md. A plan's seconds are for choosing between configurations, not for promising a finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformer2.plan.job import QUANTISED_BYTES, Job
from transformer2.plan.memory import num_trained
from transformer2.plan.terms import Term

__all__ = ["DEVICES", "Device", "decomposition", "device_for", "step_seconds", "wire"]

LAUNCH = 8e-4  # seconds a decoder layer needs to launch its kernels in eager mode, whatever its size
NETWORK = 25e9  # bytes/s between nodes, per device (200 Gbit/s)
PCIE = 20e9  # bytes/s between host and device


DeviceName = Literal["cpu", "rtx3060", "rtx4090", "a100", "h100", "h200"]  # the command line reads it unimported


@dataclass(frozen=True)
class Device:
    """Figures of one device (a CPU core counts as one).

    Attributes:
        name: As in `--device`.
        memory: GB.
        flops: Dense FLOP/s in the dtype of training (bf16; fp32 on a CPU).
        fp32: Dense FLOP/s in fp32.
        fp64: Dense FLOP/s in fp64.
        eigh: FLOP/s that an fp64 eigendecomposition reaches, counted as 9 r^3.
        bandwidth: Bytes/s of its memory.
        link: Bytes/s to its neighbours in a node.
        share: Of the peak FLOP/s that matrix products reach.
        bandwidth_share: Of the peak bandwidth that decoding reaches.
    """

    name: DeviceName
    memory: float
    flops: float
    fp32: float
    fp64: float
    eigh: float
    bandwidth: float
    link: float
    share: float = 0.4
    bandwidth_share: float = 0.6


DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        Device("cpu", 0, 50e9, 50e9, 50e9, 30e9, 10e9, 5e9, share=1, bandwidth_share=1),
        Device("rtx3060", 12, 25.6e12, 12.7e12, 0.2e12, 0.05e12, 360e9, 12e9),
        Device("rtx4090", 24, 165e12, 82.6e12, 1.29e12, 0.2e12, 1008e9, 20e9),
        Device("a100", 80, 312e12, 19.5e12, 19.5e12, 0.4e12, 2039e9, 300e9),
        Device("h100", 80, 989e12, 67e12, 67e12, 0.5e12, 3350e9, 450e9),
        Device("h200", 141, 989e12, 67e12, 67e12, 0.5e12, 4800e9, 450e9),
    )
}


def device_for(memory: float) -> Device:
    """The card that one thinks of at so many GB; `--device` names another."""
    if memory <= 12:
        return DEVICES["rtx3060"]
    return DEVICES["rtx4090" if memory <= 32 else "h100" if memory <= 80 else "h200"]


def decomposition(job: Job, device: Device) -> list[Term]:
    """The side bases of all tuned matrices, once per base model, shared among ranks (svf/basis.py)."""
    if not job.svf:
        return []
    gram = sum(m.r**2 * max(m.m, m.n) for m in job.shape.tuned)
    return [
        _flops("decomposition", "1.25 * gram / ranks", device.fp64, device.share, "Gram", gram=gram, ranks=job.ranks),
        _flops("decomposition", "9 * cubes / ranks", device.eigh, 1, "eigh", cubes=_cubes(job), ranks=job.ranks),
    ]  # fmt: skip


def step_seconds(job: Job, device: Device) -> list[Term]:
    """Parts `rollout`, `log-probs`, `backward` and, where weights travel, `wire` (not overlapped).

    Without `rollout` where a server draws: its seconds are its devices'.
    """
    s = job.shape
    forward = _forward(job, job.form)
    merged = "merged" if job.merged_rollouts else "factored" if job.form == "factored" else "delta"
    drawing = _forward(job, merged)
    rows, width, sampled = job.rows, job.prompt_tokens + job.mean_completion, job.rows * job.mean_completion
    groups = -(-rows // job.rollout_rows)
    cache = rows / groups * job.mean_completion / job.completion_tokens
    cache *= (job.prompt_tokens + job.completion_tokens / 2) * s.layers * 2 * s.K * s.dtype_bytes
    fraction = (s.layers - min(m.layer for m in s.tuned)) / s.layers
    models = 2 if job.kl else 1
    share = {"peak": device.flops, "share": device.share}
    drawn = [
        _flops("rollout", "rows * prompt * forward", device.flops, device.share, "prefill", rows=rows,
               prompt=job.prompt_tokens, forward=drawing),
        Term(
            "rollout",
            "groups * steps * max((weights + cache) / bandwidth, live * (forward + head) / (peak * share), launch)",
            {
                "groups": groups, "steps": job.completion_tokens, "weights": _read(job, merged), "cache": cache,
                "bandwidth": device.bandwidth * device.bandwidth_share, "forward": drawing,
                "live": sampled / groups / job.completion_tokens, "head": 2 * s.D * s.V,
                "launch": LAUNCH * s.layers, **share,
            },
            "decode: bytes, FLOPs or launches, whichever takes longest",
        ),
    ]  # fmt: skip
    terms = [
        *([] if job.elsewhere else drawn),
        _flops("log-probs", "models * (rows * width * forward + sampled * head)", device.flops, device.share,
               "policy, and the reference with a KL", models=models, rows=rows, width=width, forward=forward,
               sampled=sampled, head=2 * s.D * s.V),
        _flops("backward", "rows * width * forward * fraction * runs + sampled * head * (models + 1)", device.flops,
               device.share, "no weight gradients; logits (and checkpointed layers) computed again", rows=rows,
               width=width, forward=forward, fraction=fraction, runs=2 if job.checkpointing else 1, sampled=sampled,
               head=2 * s.D * s.V, models=models),
    ]  # fmt: skip
    if job.merged_rollouts:
        products = sum(m.r * m.m * m.n for m in s.tuned)
        terms.append(_flops("rollout", "2 * cubes + 2 * products", device.fp32, device.share, "composing W', fp32",
                            cubes=_cubes(job), products=products))  # fmt: skip
    if job.sharded:
        speed = NETWORK if job.nodes > 1 else device.link
        terms.append(Term("wire", "bytes / speed", {"bytes": wire(job).value, "speed": speed}, "gathering weights"))
        if job.strategy == "zero3_offload":
            formula, numbers = _gathers(job)
            numbers |= {"ranks": job.ranks, "speed": PCIE}
            terms.append(Term("wire", f"{formula} / ranks / speed", numbers, "shards from the host"))
    return terms


def wire(job: Job) -> Term:
    """Bytes that a rank receives in one step."""
    n = job.ranks
    if n == 1:
        return Term("wire", "0", {})
    if not job.sharded:
        trained = {"ranks": n, "trained": num_trained(job)}
        return Term("wire", "2 * (ranks - 1) / ranks * trained * 4", trained, "all-reduce of the gradient of z")
    formula, numbers = _gathers(job)
    return Term("wire", f"(ranks - 1) / ranks * {formula}", {**numbers, "ranks": n}, "ZeRO-3 gathers")


def _gathers(job: Job) -> tuple[str, dict[str, float]]:
    """All weights, for every pass over a micro-batch and for every decoded token."""
    s = job.shape
    return "whole * (micro * passes + groups * steps)", {
        "whole": (s.params + (s.basis if job.svf else 0)) * s.dtype_bytes,
        "micro": -(-job.rows // job.micro_rows),
        "passes": 2 + job.kl + job.checkpointing,
        "groups": -(-job.rows // job.rollout_rows),
        "steps": 0 if job.elsewhere else job.completion_tokens,
    }


def _forward(job: Job, form: str) -> float:
    """FLOPs of one token in the decoder blocks: 2 per weight, the form's share of P, attention over half the width."""
    s = job.shape
    extra = {"delta": 4 * s.basis, "factored": 2 * s.basis, "merged": 0}[form] if job.svf else 2 * num_trained(job)
    return 2 * s.linear + extra + 4 * s.A * s.layers * job.width / 2


def _read(job: Job, form: str) -> float:
    """Bytes of weights that one decoding step reads."""
    s = job.shape
    packed = s.dtype_bytes if job.quantisation == "none" else QUANTISED_BYTES[job.quantisation]
    basis = s.basis if job.svf and form != "merged" else 0
    return s.linear * packed + (s.D * s.V + basis) * s.dtype_bytes


def _cubes(job: Job) -> float:
    return float(sum(m.r**3 for m in job.shape.tuned))


def _flops(part: str, formula: str, peak: float, share: float, note: str, **numbers: float) -> Term:
    return Term(part, f"({formula}) / (peak * share)", {**numbers, "peak": peak, "share": share}, note)
