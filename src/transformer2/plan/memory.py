"""Bytes per device, term by term: what is resident, and what each phase of a step adds to it.

    peak = resident + max over phases (compose, prefill, decode, update) of the sum of its terms

Every term counts what our code keeps, checked against measured tensor bytes (tests/plan): W stays beside B in the
factored form and beside W' in the merged one (docs/adr/0002); W is frozen, so no linear layer keeps its input for the
backward pass; activations exist for the layers above the first tuned one only, one micro-batch at a time.

Names in formulas: b bytes of an activation, V D I vocabulary, hidden and MLP size, A = heads x head_dim, K = kv_heads x
head_dim, r singular values of a matrix; `tokens` are padded tokens of a micro-batch, `width` of its longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from transformer2.plan.job import QUANTISED_BYTES, Job
from transformer2.plan.terms import Term, total
from transformer2.rl.logprobs import chunk_tokens
from transformer2.rollout.prefill import rows_at_a_time

__all__ = ["PARTS", "Memory", "memory"]

PARTS = (
    "weights", "basis", "optimizer", "gradient", "composed weights", "KV cache", "activations", "logits", "workspace",
)  # fmt: skip

# DeepSpeed's default of stage3_max_live_parameters: what a rank may hold gathered at a time.
LIVE_PARAMETERS = 1e9
# Copies of one chunk of fp32 logits that score_tokens has at its worst; measured, see tests/plan.
CHUNK_BYTES, CHUNK_BYTES_FULL_KL = 12, 21


@dataclass(frozen=True)
class Memory:
    """The terms of one job.

    Attributes:
        resident: There all the time.
        phases: Name of a phase -> what it adds.
        host: In host memory, per node (off-loaded weights).
    """

    resident: Sequence[Term]
    phases: Mapping[str, Sequence[Term]]
    host: Sequence[Term]

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: total(self.phases[name]))

    @property
    def peak(self) -> float:
        """Bytes per device at the worst moment of a step."""
        return self.peak_of(self.peak_phase)

    def peak_of(self, phase: str) -> float:
        """Bytes per device in one phase."""
        return total(self.resident) + total(self.phases[phase])

    def part(self, name: str) -> float:
        """Bytes of one part: resident ones as they are, others at their own worst phase."""
        terms = [self.resident, *self.phases.values()]
        return max(total(t for t in group if t.part == name) for group in terms)


def memory(job: Job) -> Memory:
    """What one device of a job must hold."""
    offloaded = job.strategy == "zero3_offload"
    frozen = _weights(job)
    resident = _trained(job) if offloaded else [*frozen, *_trained(job)]
    if job.sharded:
        resident.append(_gathered(job))
    copies = _composed(job)
    phases: dict[str, Sequence[Term]] = {"update": _update(job)}
    if not job.elsewhere:
        phases = {"prefill": (*copies, *_prefill(job)), "decode": (*copies, *_decode(job)), **phases}
    if copies:
        phases["compose"] = (*copies, _composing(job))
    return Memory(resident, phases, host=frozen if offloaded else ())


# ------------------------------------------------------------------ resident


def _weights(job: Job) -> list[Term]:
    s, b = job.shape, job.shape.dtype_bytes
    part = _part_of_a_rank(job)
    if job.quantisation == "none":
        terms = [_term("weights", "params * b", job, part, params=s.params, b=b)]
    else:
        packed = QUANTISED_BYTES[job.quantisation]
        terms = [
            _term("weights", "linear * packed", job, part, f"{job.quantisation}", linear=s.linear, packed=packed),
            _term("weights", "rest * b", job, part, "embeddings, head, norms", rest=s.params - s.linear, b=b),
        ]
    if not job.svf:
        return terms
    terms.append(_term("basis", "basis * b", job, part, "P, r^2 per tuned matrix", basis=s.basis, b=b))
    copy = {"factored": "B of the factored form beside W", "merged": "W' of the merged form beside W"}
    if job.form in copy:
        terms.append(_term("weights", "tuned * b", job, part, copy[job.form], tuned=s.tuned_weights, b=b))
    return terms


def _trained(job: Job) -> list[Term]:
    """z (or LoRA's A and B) in fp32, its gradient and AdamW's two moments; sigma beside z."""
    count = num_trained(job)
    share = job.ranks if job.strategy in ("zero2", "zero3", "zero3_offload") else 1
    note = "z and sigma, fp32" if job.svf else "A and B, fp32"
    return [
        Term("weights", "trained * bytes", {"trained": count, "bytes": 8 if job.svf else 4}, note),
        Term("optimizer", "trained * 8 / ranks", {"trained": count, "ranks": share}, "AdamW, fp32"),
        Term("gradient", "trained * 4", {"trained": count}, "fp32"),
    ]


def num_trained(job: Job) -> int:
    """Trainable numbers."""
    return job.shape.num_z if job.svf else sum(job.rank * (matrix.m + matrix.n) for matrix in job.shape.tuned)


def _part_of_a_rank(job: Job) -> float:
    """By what sharded weights are divided; off-loaded ones are counted per node."""
    if job.strategy == "zero3_offload":
        return job.nodes
    return job.ranks if job.sharded else 1


def _gathered(job: Job) -> Term:
    """What ZeRO-3 holds whole beside its shard: DeepSpeed's bound, or the largest layer where that is larger."""
    s = job.shape
    numbers = {"live": LIVE_PARAMETERS, "V": s.V, "D": s.D, "params": s.params, "b": s.dtype_bytes}
    return Term("weights", "min(params, max(live, V * D)) * b", numbers, "gathered at a time")


# ------------------------------------------------------------------ rollouts


def _composed(job: Job) -> tuple[Term, ...]:
    if not job.merged_rollouts:
        return ()
    numbers = {"tuned": job.shape.tuned_weights, "b": job.shape.dtype_bytes}
    return (Term("composed weights", "tuned * b", numbers, "W' of a merged rollout beside W"),)


def _composing(job: Job) -> Term:
    """compose_weight in fp32: W, W', and three r x r matrices (P, P d, the step)."""
    largest = max(job.shape.tuned, key=lambda matrix: matrix.m * matrix.n)
    size = 0 if job.shape.dtype_bytes == 4 else 4
    numbers = {"m": largest.m, "n": largest.n, "r": largest.r, "copy": size, "fp32": 4}
    return Term("workspace", "m * n * (fp32 + copy) + r * r * (2 * fp32 + copy)", numbers, "composing one matrix")


def _cache(job: Job, tokens: int, note: str) -> Term:
    s = job.shape
    numbers = {"rows": job.rollout_rows, "tokens": tokens, "layers": s.layers, "K": s.K, "b": s.dtype_bytes}
    return Term("KV cache", "rows * tokens * layers * 2 * K * b", numbers, note)


def _prefill(job: Job) -> list[Term]:
    """One layer at a time without gradients; the widest moments are the MLP's product and masked attention."""
    s, p = job.shape, job.prompt_tokens
    rows = job.rollout_rows if job.sharded else min(job.rollout_rows, rows_at_a_time(p))
    numbers = {"tokens": rows * p, "D": s.D, "I": s.I, "A": s.A, "b": s.dtype_bytes, "width": p}
    numbers["heads"] = s.heads
    formula = "tokens * ((max(3 * I, 4 * A) + 3 * D + 2 * A / heads) * b + width * (b + 1))"
    return [_cache(job, p, "prompts"), Term("activations", formula, numbers, "one layer")]


def _decode(job: Job) -> list[Term]:
    s = job.shape
    rows = job.rollout_rows
    last = {"rows": rows, "tokens": job.width, "K": s.K, "b": s.dtype_bytes}
    size = s.dtype_bytes if s.dtype_bytes < 4 else 0
    return [
        _cache(job, job.width, "prompts and whole completions"),
        Term("KV cache", "rows * tokens * K * b", last, "keys of one layer, while they grow by a token"),
        Term("logits", "rows * V * (12 + copy)", {"rows": rows, "V": s.V, "copy": size}, "one token a row, fp32"),
    ]


# ------------------------------------------------------------------ update


def _update(job: Job) -> list[Term]:
    """Saved for the backward pass of one micro-batch, and the larger of what scoring and a layer's backward need."""
    s, b = job.shape, job.shape.dtype_bytes
    sampled = job.micro_rows * job.completion_tokens
    size = {"tokens": job.micro_tokens, "D": s.D, "b": b}
    kept = _activations(job)
    again: list[Term] = []
    if job.checkpointing:
        _, _, layers = _layers_with_gradient(job)
        again = [
            replace(term, formula=f"{term.formula} / blocks", numbers={**term.numbers, "blocks": layers})
            for term in kept
        ]  # the one layer that is computed again
        kept = [
            Term("activations", "tokens * layers * D * b", {**size, "layers": layers}, "inputs of checkpointed layers")
        ]
    chunk = {
        "chunk": min(sampled, chunk_tokens(s.V)),
        "V": s.V,
        "bytes": CHUNK_BYTES_FULL_KL if job.full_kl else CHUNK_BYTES,
    }
    scoring = Term("logits", "chunk * V * bytes", chunk, "one chunk of log-probabilities and KL")
    gradients = Term("workspace", "tokens * (3 * I + 3 * D) * b", {**size, "I": s.I}, "gradients in a layer")
    hidden = {"sampled": sampled, "D": s.D, "b": b, "models": 2}  # the KL is looked at now and then in any case
    return [
        *kept,
        Term("activations", "sampled * D * b * models", hidden, "last hidden states of policy and reference"),
        *max([scoring], [*again, gradients], key=total),
    ]


def _activations(job: Job) -> list[Term]:
    """What the decoder layers keep for the backward pass."""
    s = job.shape
    norms, attention, mlp = _layers_with_gradient(job)
    size = {"tokens": job.micro_tokens, "b": s.dtype_bytes}
    return [
        Term("activations", "tokens * norms * (4 * D + 4)", {**size, "norms": norms, "D": s.D}, "norms, fp32"),
        Term(
            "activations",
            "tokens * layers * (4 * A * b + 4 * heads + width * b)",
            {**size, "layers": attention, "A": s.A, "heads": s.heads, "width": job.width},
            "attention: q, k, v, output, log-sum-exp, mask",
        ),
        Term(
            "activations",
            "tokens * layers * 3 * I * b",
            {**size, "layers": mlp, "I": s.I},
            "MLP: gate, its activation, up",
        ),
        *_adapter_activations(job),
        *([_inputs_of_int8(job)] if job.quantisation == "int8" else []),
    ]


def _inputs_of_int8(job: Job) -> Term:
    """bitsandbytes' int8 layers keep their inputs though W is frozen: x of gate and of up (each its own where both are
    tuned), the product before down, and x of q, k and v; o_proj's is kept anyway."""
    s = job.shape
    _, attention, mlp = _layers_with_gradient(job)
    numbers = {"tokens": job.micro_tokens, "attention": attention, "mlp": mlp, "D": s.D, "I": s.I, "b": s.dtype_bytes}
    formula = "tokens * (attention * D + mlp * (2 * D + I)) * b"
    return Term("activations", formula, numbers, "int8: inputs of its layers")


def _layers_with_gradient(job: Job) -> tuple[int, int, int]:
    """Norms, attentions and MLPs that a gradient passes through: those behind the first tuned matrix."""
    first = min(matrix.layer for matrix in job.shape.tuned)
    layers = job.shape.layers - first
    attention_first = any(m.layer == first and "attn" in m.name for m in job.shape.tuned)
    # In the first tuned layer the norm (and attention) before the first tuned matrix see no gradient.
    return 2 * layers + (0 if attention_first else -1), layers - (0 if attention_first else 1), layers


def _adapter_activations(job: Job) -> list[Term]:
    s, tokens = job.shape, job.micro_tokens
    if not job.svf:
        inputs = _inputs(job)
        numbers = {"tokens": tokens, "inputs": inputs, "rank": job.rank, "matrices": len(s.tuned)}
        return [Term("activations", "tokens * 4 * (inputs + rank * matrices)", numbers, "LoRA: x and A x, fp32")]
    if job.form == "merged":
        inputs = _inputs(job, sides="in") + sum(m.m for m in s.tuned if m.m < m.n)
        numbers = {"tokens": tokens, "sides": inputs, "b": s.dtype_bytes}
        return [
            Term("activations", "tokens * sides * b", numbers, "SVF merged: inputs and outputs of the smaller side")
        ]
    numbers = {"tokens": tokens, "z": s.num_z, "b": s.dtype_bytes}
    return [Term("activations", "tokens * z * b", numbers, "SVF: P^T x of every tuned matrix")]


def _inputs(job: Job, sides: str = "both") -> int:
    """Sum of the inputs that tuned matrices keep: an input that several matrices of a layer share is kept once.

    LoRA on a bf16 base casts it to fp32 for each of them; the first norm's output exists only if it was not kept.
    """
    shared = job.shape.dtype_bytes == 4 or job.svf
    count = 0
    for _, group in groupby(job.shape.tuned, key=lambda m: m.layer):
        seen: set[str] = set()
        for matrix in group:
            key = _input_of(matrix.leaf) if shared else matrix.leaf
            if key not in seen and (sides == "both" or matrix.n <= matrix.m):
                seen.add(key)
                count += matrix.n
    return count


def _input_of(leaf: str) -> str:
    return {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(leaf, leaf)


def _term(part: str, formula: str, job: Job, ranks: float, note: str = "", **numbers: float) -> Term:
    """A resident term, divided among ranks where weights are sharded."""
    if not job.sharded:
        return Term(part, formula, numbers, note)
    return Term(part, f"{formula} / ranks", {**numbers, "ranks": ranks}, note)
