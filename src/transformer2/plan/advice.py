"""The first change that makes a job fit, in this order: rows, checkpointing, form, quantisation, stage, off-load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformer2.plan.job import STRATEGIES, Job
from transformer2.plan.memory import Memory, memory
from transformer2.plan.seconds import Device, decomposition, step_seconds, wire
from transformer2.plan.terms import Term

__all__ = ["Plan", "advise", "changes", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """One job under one strategy.

    Attributes:
        job: What was asked for.
        limit: Bytes that a device has.
        memory: What it would need.
        seconds: Of one step.
        decomposition: Seconds, once per base model.
        wire: Bytes a rank receives in one step.
        advised: The job with the first change that fits, the job itself where it fits, None where nothing does.
    """

    job: Job
    limit: float
    memory: Memory
    seconds: list[Term]
    decomposition: list[Term]
    wire: Term
    advised: Job | None

    @property
    def fits(self) -> bool:
        """Whether the job fits as it is."""
        return self.memory.peak <= self.limit


def make_plan(job: Job, limit: float, device: Device) -> Plan:
    """Everything there is to say of a job."""
    return Plan(
        job, limit, memory(job), step_seconds(job, device), decomposition(job, device), wire(job), advise(job, limit)
    )


def advise(job: Job, limit: float) -> Job | None:
    """The job with the first change that fits into `limit` bytes; None when none of them does."""
    return next((fitting for rung in _ladder(job) if (fitting := _fewer_rows(rung, limit))), None)


def changes(asked: Job, advised: Job) -> list[str]:
    """What to set, as flags of `transformer2 fit`."""
    words = []
    if advised.micro_tokens != asked.micro_tokens:
        words.append(f"--model.micro_batch_tokens {advised.micro_tokens}")
    if advised.rollout_rows != asked.rollout_rows:
        words.append(f"--model.max_rollout_rows {advised.rollout_rows}")
    if advised.checkpointing and not asked.checkpointing:
        words.append("--model.activation_checkpointing true")
    if advised.quantisation != asked.quantisation:
        words.append(f"--config conf/quantisation/{advised.quantisation}.yaml")
    else:
        if advised.form != asked.form:
            words.append(f"--model.adapter.form {advised.form}")
        if advised.merge_rollouts != asked.merge_rollouts:
            words.append("--model.merge_rollouts false")
    if advised.strategy != asked.strategy:
        words.append(f"--config conf/strategy/{advised.strategy}.yaml")
    return words


def _ladder(job: Job) -> Iterator[Job]:
    yield job
    job = job.with_(checkpointing=True)
    yield job
    forms: list[dict[str, Any]] = [{"merge_rollouts": False}] if job.merged_rollouts else []
    if job.svf and job.form != "delta":
        forms += [{"form": "delta"}, {"form": "delta", "merge_rollouts": False}]
    yield from (job.with_(**change) for change in forms)
    if job.quantisation == "none" and not job.sharded:  # bitsandbytes packs what ZeRO-3 would shard
        yield from (job.with_(quantisation=packed, form="delta") for packed in ("int8", "nf4"))
    if job.gpus * job.nodes > 1 and job.quantisation == "none":
        later = STRATEGIES[STRATEGIES.index(job.strategy) + 1 :]
        yield from (job.with_(strategy=stage, form="delta") for stage in later if stage in ("zero3", "zero3_offload"))


def _fewer_rows(job: Job, limit: float) -> Job | None:
    """The job with as many rows at a time as fit, halving; None when one row does not."""
    while not _phases_fit(job, limit, "update"):
        if job.micro_rows == 1:
            return None
        job = job.with_(micro_batch_tokens=job.micro_rows // 2 * job.width)
    while not _phases_fit(job, limit, "prefill", "decode", "compose"):
        if job.rollout_rows == 1:
            return None
        job = job.with_(max_rollout_rows=job.rollout_rows // 2)
    return job


def _phases_fit(job: Job, limit: float, *phases: str) -> bool:
    needed = memory(job)
    return all(needed.peak_of(phase) <= limit for phase in phases if phase in needed.phases)
