"""Seconds and bytes on the wire, term by term, from FLOPs and bytes, a device's stated figures and a stated share.

    seconds = FLOPs / (peak FLOP/s x share),  bytes / (peak bytes/s x share)

What is assumed and was not measured (no GPU was at hand): the shares of the peaks, the launch time of a layer in eager
decoding, and the rate of cuSOLVER's eigendecomposition. Vendors' figures are dense ones. `cpu` is one core as measured
in docs/log.md. A plan's seconds are for choosing between configurations, not for promising a finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from transformer2.plan.job import Job
from transformer2.plan.pictures import PictureShape
from transformer2.plan.terms import Term

__all__ = ["DEVICES", "Device", "decomposition", "device_for", "step_seconds", "wire"]

LAUNCH = 8e-4  # seconds a decoder layer needs to launch its kernels in eager mode, whatever its size
NETWORK = 25e9  # bytes/s between nodes, per device (200 Gbit/s)
PCIE = 20e9  # bytes/s between host and device


DeviceName = Literal["cpu", "rtx3060", "rtx4090", "a100", "h100", "h200"]  # the command line reads it unimported


@dataclass(frozen=True)
class Device:
    """Figures of one device (a CPU core counts as one)."""

    name: DeviceName
    flops: float  # dense FLOP/s in the dtype of training (bf16; fp32 on a CPU)
    fp32: float  # dense FLOP/s in fp32
    fp64: float  # ... and in fp64
    eigh: float  # FLOP/s that an fp64 eigendecomposition reaches, counted as 9 r^3
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s to its neighbours in a node
    share: float = 0.4  # of the peak FLOP/s that matrix products reach
    bandwidth_share: float = 0.6  # of the peak bandwidth that decoding reaches


DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        Device("cpu", 50e9, 50e9, 50e9, 30e9, 10e9, 5e9, share=1, bandwidth_share=1),
        Device("rtx3060", 25.6e12, 12.7e12, 0.2e12, 0.05e12, 360e9, 12e9),
        Device("rtx4090", 165e12, 82.6e12, 1.29e12, 0.2e12, 1008e9, 20e9),
        Device("a100", 312e12, 19.5e12, 19.5e12, 0.4e12, 2039e9, 300e9),
        Device("h100", 989e12, 67e12, 67e12, 0.5e12, 3350e9, 450e9),
        Device("h200", 989e12, 67e12, 67e12, 0.5e12, 4800e9, 450e9),
    )
}


def device_for(memory: float) -> Device:
    """The usual card with so many GB of memory; `--device` names another."""
    if memory <= 12:
        return DEVICES["rtx3060"]
    return DEVICES["rtx4090" if memory <= 32 else "h100" if memory <= 80 else "h200"]


def decomposition(job: Job, device: Device) -> list[Term]:
    """The side bases of all tuned matrices, once per base model, shared among ranks (svf/basis.py)."""
    if not job.svf:
        return []
    gram, cubes, ranks = sum(m.r**2 * max(m.m, m.n) for m in job.shape.tuned), _cubes(job), job.ranks
    peak, share, eigh = device.fp64, device.share, device.eigh
    return [
        Term("decomposition", lambda: 1.25 * gram / ranks / (peak * share), "Gram"),
        Term("decomposition", lambda: 9 * cubes / ranks / eigh, "eigh"),
    ]


def step_seconds(job: Job, device: Device) -> list[Term]:
    """Parts `rollout`, `log-probs`, `backward` and, where weights travel, `wire` (not overlapped).

    Without `rollout` where a server draws (its seconds are its devices') and where a step draws nothing.
    """
    s, peak, share = job.shape, device.flops, device.share
    rows, width, sampled = job.rows, job.prompt_tokens + job.mean_completion, job.rows * job.mean_completion
    forward, head, models = _forward(job, job.form), 2 * s.D * s.V, 2 if job.kl else 1
    fraction = (s.layers - min(m.layer for m in s.tuned)) / s.layers
    runs = 2 if job.checkpointing else 1
    return [
        *(_rollout(job, device) if job.sampled and not job.elsewhere else []),
        *(_pictures(job, device) if job.pictures else []),
        Term(
            "log-probs",
            lambda: models * (rows * width * forward + sampled * head) / (peak * share),
            "policy, and the reference with a KL",
        ),
        Term(
            "backward",
            lambda: (rows * width * forward * fraction * runs + sampled * head * (models + 1)) / (peak * share),
            "no weight gradients; logits (and checkpointed layers) computed again",
        ),
        *(_gathering(job, device) if job.sharded else []),
    ]


def _rollout(job: Job, device: Device) -> list[Term]:
    s, peak, share, fp32 = job.shape, device.flops, device.share, device.fp32
    form = "merged" if job.merged_rollouts else "factored" if job.form == "factored" else "delta"
    rows, prompt, steps, forward = job.rows, job.prompt_tokens, job.completion_tokens, _forward(job, form)
    groups, bandwidth = _groups(job), device.bandwidth * device.bandwidth_share
    live = rows * job.mean_completion / groups / steps
    basis = s.basis if job.svf and form != "merged" else 0
    weights = s.linear * job.weight_bytes + (s.experts + s.D * s.V + basis) * s.dtype_bytes
    cache = live * (prompt + steps / 2) * s.layers * 2 * s.K * s.dtype_bytes
    head, launch = 2 * s.D * s.V, LAUNCH * s.layers
    terms = [
        Term("rollout", lambda: rows * prompt * forward / (peak * share), "prefill"),
        Term(
            "rollout",
            lambda: groups * steps
            * max((weights + cache) / bandwidth, live * (forward + head) / (peak * share), launch),
            "decode: bytes, FLOPs or launches, whichever takes longest",
        ),
    ]  # fmt: skip
    if job.merged_rollouts:
        cubes, products = _cubes(job), sum(m.r * m.m * m.n for m in s.tuned)
        terms.append(Term("rollout", lambda: (2 * cubes + 2 * products) / (fp32 * share), "composing W', fp32"))
    return terms


def _pictures(job: Job, device: Device) -> list[Term]:
    """Each picture once, wherever its prompt is run first; those that are kept from steps before cost nothing."""
    peak, share, p = device.flops, device.share, cast(PictureShape, job.shape.pictures)
    drawn, weights = -(-job.pictures // job.ranks), job.shape.tower
    part = "log-probs" if job.elsewhere else "rollout"
    return [Term(part, lambda: drawn * p.patches * 2 * weights / (peak * share), "pictures through the tower")]


def _gathering(job: Job, device: Device) -> list[Term]:
    received, speed = wire(job).value, NETWORK if job.nodes > 1 else device.link
    terms = [Term("wire", lambda: received / speed, "gathering weights")]
    if job.strategy == "zero3_offload":
        whole, passes, steps, ranks, pcie = *_gathers(job), job.ranks, PCIE
        terms.append(Term("wire", lambda: whole * (passes + steps) / ranks / pcie, "shards from the host"))
    return terms


def wire(job: Job) -> Term:
    """Bytes that a rank receives in one step."""
    ranks, trained = job.ranks, job.num_trained
    if not job.sharded:
        return Term("wire", lambda: 2 * (ranks - 1) / ranks * trained * 4, "all-reduce of the gradient of z")
    whole, passes, steps = _gathers(job)
    return Term("wire", lambda: (ranks - 1) / ranks * whole * (passes + steps), "ZeRO-3 gathers")


def _gathers(job: Job) -> tuple[float, int, int]:
    """Bytes of all weights, and how often they are gathered: for passes over micro-batches, for decoded tokens."""
    whole = (job.shape.params + (job.shape.basis if job.svf else 0)) * job.shape.dtype_bytes
    passes = -(-job.rows // job.micro_rows) * (2 + job.kl + job.checkpointing)
    return whole, passes, _groups(job) * job.completion_tokens if job.sampled and not job.elsewhere else 0


def _groups(job: Job) -> int:
    """Batches that a rank's rollouts are drawn in."""
    return -(-job.rows // job.rollout_rows)


def _forward(job: Job, form: str) -> float:
    """FLOPs of one token in the decoder blocks: 2 per weight, the form's share of P, attention over half the width."""
    s = job.shape
    extra = {"delta": 4 * s.basis, "factored": 2 * s.basis, "merged": 0}[form] if job.svf else 2 * job.num_trained
    return 2 * s.multiplied + extra + 4 * s.A * s.layers * job.width / 2


def _cubes(job: Job) -> float:
    return float(sum(m.r**3 for m in job.shape.tuned))
