"""The first change that makes a job fit, in this order: rows, checkpointing, form, quantisation, stage, off-load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformer2.plan.job import KEYS, TRAINER_STRATEGIES, Job
from transformer2.plan.memory import Memory, memory
from transformer2.plan.seconds import Device, step_seconds
from transformer2.plan.terms import Term
from transformer2.quantisation import KINDS

__all__ = ["Plan", "advise", "changes"]


@dataclass(frozen=True)
class Plan:
    """Everything there is to say of one job under one strategy.

    Attributes:
        job: What was asked for.
        limit: Bytes that a device has.
        device: Whose figures the seconds use.
    """

    job: Job
    limit: float
    device: Device

    @cached_property
    def memory(self) -> Memory:
        """What it needs."""
        return memory(self.job)

    @cached_property
    def seconds(self) -> list[Term]:
        """Of one step."""
        return step_seconds(self.job, self.device)

    @property
    def fits(self) -> bool:
        """Whether the job fits as it is."""
        return self.memory.peak <= self.limit

    @cached_property
    def advised(self) -> Job | None:
        """The job with the first change that fits, the job itself where it fits, None where nothing does."""
        return advise(self.job, self.limit)


def advise(job: Job, limit: float) -> Job | None:
    """The job with the first change that fits into `limit` bytes; None when none of them does."""
    return next((fitting for other in _alternatives(job) if (fitting := _fewer_rows(other, limit))), None)


def changes(asked: Job, advised: Job) -> list[str]:
    """What to set, as flags of `transformer2 fit`."""
    packed = advised.quantisation != asked.quantisation  # ... in the delta form, never merged
    words = []
    for what, key in KEYS.items():
        value = getattr(advised, what)
        if value != getattr(asked, what) and not (packed and what in ("form", "merge_rollouts")):
            words.append(f"--{key} {str(value).lower()}")
    if packed and advised.quantisation:
        words.append(f"--config conf/quantisation/{advised.quantisation.name}.yaml")
    if advised.strategy != asked.strategy:
        words.append(f"--config conf/strategy/{advised.strategy}.yaml")
    return words


def _alternatives(job: Job) -> Iterator[Job]:
    """The job itself, then each change to try, the one that costs least first."""
    yield job
    if not job.row_gradients:
        job = job.with_(checkpointing=True)
        yield job
    if job.merged_rollouts:
        yield job.with_(merge_rollouts=False)
    if job.svf and job.form != "delta":
        yield job.with_(form="delta")
        yield job.with_(form="delta", merge_rollouts=False)
    if job.quantisation:
        return
    if not job.sharded:  # bitsandbytes packs what ZeRO-3 would shard
        yield from (job.with_(quantisation=KINDS[kind]) for kind in ("int8", "nf4"))
    if job.gpus * job.nodes > 1:
        later = TRAINER_STRATEGIES[TRAINER_STRATEGIES.index(job.strategy) + 1 :]
        yield from (job.with_(strategy=stage, form="delta") for stage in later if stage in ("zero3", "zero3_offload"))


def _fewer_rows(job: Job, limit: float) -> Job | None:
    """The job with as many rows at a time as fit, halving; None when one row does not."""
    while not _phases_fit(job, limit, "update"):
        if job.micro_rows == 1:
            return None
        job = job.with_(micro_batch_tokens=job.micro_rows // 2 * job.width)
    while not _phases_fit(job, limit, "prefill", "decode", "compose", "pictures"):
        if job.rollout_rows == 1:
            return None
        job = job.with_(max_rollout_rows=job.rollout_rows // 2)
    return job


def _phases_fit(job: Job, limit: float, *phases: str) -> bool:
    needed = memory(job)
    return all(needed.peak_of(phase) <= limit for phase in phases if phase in needed.phases)
