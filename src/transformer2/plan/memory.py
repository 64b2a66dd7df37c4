"""Bytes per device, term by term: what is resident, and what each phase of a step adds to it.

    peak = resident + max over phases (compose, prefill, decode, update) of the sum of its terms

Every term counts what our code keeps, checked against measured tensor bytes (tests/plan): W stays in memory with B in
the factored form (docs/adr/0002); W is frozen, so no linear layer keeps its input for the backward pass;
activations exist for the layers above the first tuned one only, one micro-batch at a time.

Names in formulas: b bytes of an activation, V D I vocabulary, hidden and MLP size, A = heads x head_dim, K = kv_heads x
head_dim, r singular values of a matrix; `tokens` are padded tokens of a micro-batch, `width` of its longest row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from transformer2.plan.job import Job
from transformer2.plan.pictures import PictureShape
from transformer2.plan.shape import Matrix
from transformer2.plan.terms import Term, total
from transformer2.quantisation import KINDS
from transformer2.rl.logprobs import chunk_tokens
from transformer2.rollout.prefill import rows_at_a_time
from transformer2.vision.embedding import CACHE_BYTES

__all__ = ["PARTS", "Memory", "memory"]

PARTS = (
    "weights", "basis", "optimizer", "gradient", "composed weights", "KV cache", "activations", "logits", "workspace",
)  # fmt: skip

# DeepSpeed's default of stage3_max_live_parameters: what a rank may hold gathered at a time.
LIVE_PARAMETERS = 1e9
# Copies of one chunk of fp32 logits that score_tokens has at its worst; measured, see tests/plan.
CHUNK_BYTES, CHUNK_BYTES_FULL_KL = 12, 21
# Matrices that read the same input.
SHARED_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@dataclass(frozen=True)
class Memory:
    """The terms of one job.

    Attributes:
        resident: There all the time.
        phases: Name of a phase -> what it adds.
        host: In host memory, per node (off-loaded weights, features of pictures).
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
    frozen, trained = _frozen(job), _trained(job)
    phases: dict[str, Sequence[Term]] = {"update": _update(job)}
    composed, composing = _composed(job) if job.merged_rollouts else ([], [])
    if not job.elsewhere:
        phases = {"prefill": [*composed, *_prefill(job)], "decode": [*composed, *_decode(job)], **phases}
    if composed:
        phases["compose"] = [*composed, *composing]
    host: list[Term] = []
    if job.pictures:
        seen, host = _pictures(job)
        phases["pictures"] = [*composed, *seen]
    if job.strategy == "zero3_offload":
        return Memory([*trained, _gathered(job)], phases, host=[*frozen, *host])
    return Memory([*frozen, *trained, *([_gathered(job)] if job.sharded else [])], phases, host=host)


# ------------------------------------------------------------------ resident


def _frozen(job: Job) -> list[Term]:
    """The base and its bases; sharded ones are divided among ranks, off-loaded ones counted per node."""
    s, b, packed = job.shape, job.shape.dtype_bytes, job.weight_bytes
    ranks = job.nodes if job.strategy == "zero3_offload" else job.ranks if job.sharded else 1
    terms = [Term("weights", lambda: s.params * b / ranks)]
    if job.quantisation:
        rest = s.params - s.packable
        terms = [
            Term("weights", lambda: s.packable * packed / ranks, job.quantisation.name),
            Term("weights", lambda: rest * b / ranks, "embeddings, head, norms"),
        ]
    if job.svf:
        terms.append(Term("basis", lambda: s.basis * b / ranks, "P, r^2 per tuned matrix"))
        if job.form == "factored":
            terms.append(Term("weights", lambda: s.tuned_weights * b / ranks, "B of the factored form alongside W"))
    return terms


def _trained(job: Job) -> list[Term]:
    """z (or LoRA's A and B) in fp32, its gradient and AdamW's two moments; sigma alongside z."""
    trained, size = job.num_trained, 8 if job.svf else 4
    ranks = 1 if job.strategy in ("single", "ddp") else job.ranks
    return [
        Term("weights", lambda: trained * size, "z and sigma, fp32" if job.svf else "A and B, fp32"),
        Term("optimizer", lambda: trained * 8 / ranks, "AdamW, fp32"),
        Term("gradient", lambda: trained * 4, "fp32"),
    ]


def _gathered(job: Job) -> Term:
    """What ZeRO-3 gathers in addition to its shard: DeepSpeed's bound, or the largest layer where that is larger."""
    s, b, live = job.shape, job.shape.dtype_bytes, LIVE_PARAMETERS
    return Term("weights", lambda: min(s.params, max(live, s.V * s.D)) * b, "gathered at a time")


# ------------------------------------------------------------------ rollouts


def _composed(job: Job) -> tuple[list[Term], list[Term]]:
    """W' while rollouts run on it; and compose_weight in fp32: W, W' and three r x r matrices (P, P d, the step)."""
    s, b = job.shape, job.shape.dtype_bytes
    w, fp32, copy = max(s.tuned, key=lambda matrix: matrix.m * matrix.n), 4, 0 if b == 4 else 4
    return [Term("composed weights", lambda: s.tuned_weights * b, "W' of a merged rollout alongside W")], [
        Term("workspace", lambda: w.m * w.n * (fp32 + copy) + w.r * w.r * (2 * fp32 + copy), "composing one matrix")
    ]


def _prefill(job: Job) -> list[Term]:
    """One layer at a time without gradients; the widest moments are the MLP's product and masked attention."""
    s, b, rows, width = job.shape, job.shape.dtype_bytes, job.rollout_rows, job.prompt_tokens
    tokens = (rows if job.sharded else min(rows, rows_at_a_time(width))) * width
    return [
        Term("KV cache", lambda: rows * width * s.layers * 2 * s.K * b, "prompts"),
        Term(
            "activations",
            lambda: tokens * ((max(3 * s.I, 4 * s.A) + 3 * s.D + 2 * s.A / s.heads) * b + width * (b + 1)),
            "one layer",
        ),
    ]


def _decode(job: Job) -> list[Term]:
    s, b, rows, width = job.shape, job.shape.dtype_bytes, job.rollout_rows, job.width
    copy = b if b < 4 else 0
    return [
        Term("KV cache", lambda: rows * width * s.layers * 2 * s.K * b, "prompts and whole completions"),
        Term("KV cache", lambda: rows * width * s.K * b, "keys of one layer, while they grow by a token"),
        Term("logits", lambda: rows * s.V * (12 + copy), "one token a row, fp32"),
    ]


# ------------------------------------------------------------------ pictures


def _pictures(job: Job) -> tuple[list[Term], list[Term]]:
    """One picture in the tower at a time, beside the keys and values of the prompts before; and in host memory, their
    features, as many as are kept."""
    s, b, rows, width = job.shape, job.shape.dtype_bytes, job.rollout_rows, job.prompt_tokens
    p, kept, ranks = cast(PictureShape, s.pictures), CACHE_BYTES, 1 if job.strategy == "single" else job.gpus
    attention = p.attention(b)
    passing = [
        Term(
            "workspace",
            lambda: p.patches * (max(3 * p.I + p.beside * p.D, attention * p.D) + p.patch_values) * b,
            "one picture in the tower",
        ),
        Term(
            "workspace",
            lambda: (p.tokens * 3 * s.D + p.patches * (4 * p.D + p.patch_values)) * b,
            "one picture in the projector",
        ),
    ]
    before = [] if job.elsewhere else [Term("KV cache", lambda: rows * width * s.layers * 2 * s.K * b, "prompts")]
    features = Term("features", lambda: kept * ranks, "of pictures, at most")
    return [*before, max(passing, key=lambda term: term.value)], [features]


# ------------------------------------------------------------------ update


def _update(job: Job) -> list[Term]:
    """Saved for the backward pass of one micro-batch, and the larger of what scoring and a layer's backward need."""
    s, b, tokens = job.shape, job.shape.dtype_bytes, job.micro_tokens
    sampled = job.micro_rows * job.completion_tokens
    models = 2  # the KL is looked at now and then in any case
    chunk, size = min(sampled, chunk_tokens(s.V)), CHUNK_BYTES_FULL_KL if job.full_kl else CHUNK_BYTES
    scoring = Term("logits", lambda: chunk * s.V * size, "one chunk of log-probabilities and KL")
    backward = [Term("workspace", lambda: tokens * (3 * s.I + 3 * s.D) * b, "gradients in a layer")]
    kept = _activations(job)
    if job.checkpointing:
        layers = _layers_with_gradient(job)[-1]
        kept = [Term("activations", lambda: tokens * layers * s.D * b, "inputs of checkpointed layers")]
        backward = [*_activations(job, layers), *backward]  # one layer is computed again
    return [
        *kept,
        Term("activations", lambda: sampled * s.D * b * models, "last hidden states of policy and reference"),
        *max([scoring], backward, key=total),
    ]


def _activations(job: Job, parts: int = 1) -> list[Term]:
    """What the decoder layers keep for the backward pass, or one of so many equal parts of it."""
    s, b, tokens, width = job.shape, job.shape.dtype_bytes, job.micro_tokens, job.width
    norms, attention, mlp = (count / parts for count in _layers_with_gradient(job))
    terms = [
        Term("activations", lambda: tokens * norms * (4 * s.D + 4), "norms, fp32"),
        Term(
            "activations",
            lambda: tokens * attention * (4 * s.A * b + 4 * s.heads + width * b),
            "attention: q, k, v, output, log-sum-exp, mask",
        ),
        Term("activations", lambda: tokens * mlp * 3 * s.I * b, "MLP: gate, its activation, up"),
    ]
    if not job.svf:  # on a bf16 base A casts its input to fp32, for each matrix
        inputs = _inputs(s.tuned, shared=b == 4) / parts
        inner = job.rank * len(s.tuned) / parts
        terms.append(Term("activations", lambda: tokens * 4 * (inputs + inner), "LoRA: x and A x, fp32"))
    else:
        z = s.num_z / parts
        terms.append(Term("activations", lambda: tokens * z * b, "SVF: P^T x of every tuned matrix"))
    if job.quantisation == KINDS["int8"]:
        # bitsandbytes' int8 layers keep their inputs though W is frozen: x of gate and of up (each its own where both
        # are tuned), the product before down, and x of q, k and v; o_proj's is kept anyway.
        terms.append(
            Term(
                "activations",
                lambda: tokens * (attention * s.D + mlp * (2 * s.D + s.I)) * b,
                "int8: inputs of its layers",
            )
        )
    return terms


def _layers_with_gradient(job: Job) -> tuple[int, int, int]:
    """Norms, attentions and MLPs that a gradient passes through: those behind the first tuned matrix."""
    first = min(matrix.layer for matrix in job.shape.tuned)
    layers = job.shape.layers - first
    # In the first tuned layer the norm (and attention) before the first tuned matrix see no gradient.
    without = 0 if any(m.layer == first and "attn" in m.name for m in job.shape.tuned) else 1
    return 2 * layers - without, layers - without, layers


def _inputs(matrices: Iterable[Matrix], shared: bool) -> int:
    """Sum of the inputs that tuned matrices keep; one that several matrices of a layer share is kept once."""
    kept = {(m.layer, SHARED_INPUT.get(m.leaf, m.leaf) if shared else m.leaf): m.n for m in matrices}
    return sum(kept.values())
