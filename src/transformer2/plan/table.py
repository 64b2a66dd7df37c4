"""Plans as text: one column a strategy, one line a part; and the arithmetic of one of them."""

from __future__ import annotations

from collections.abc import Sequence

from transformer2.plan.advice import Plan, changes
from transformer2.plan.memory import PARTS
from transformer2.plan.seconds import decomposition, wire
from transformer2.plan.terms import readable, total

__all__ = ["explanation", "plan_table"]

GB = 1e9
SECONDS = ("rollout", "log-probs", "backward", "wire")
WIRE = "wire, GB a step"


def plan_table(plans: Sequence[Plan], chosen: Plan, steps: int | None = None) -> str:
    """The table over strategies; a star marks the chosen one.

    Args:
        plans: One a strategy.
        chosen: The one that the heading is about.
        steps: Optimizer steps of the run, for its hours (without validations); None where the config says no number.
    """
    once = [total(decomposition(p.job, p.device)) for p in plans]
    hours = [(first + (steps or 0) * total(p.seconds)) / 3600 for first, p in zip(once, plans, strict=True)]
    rows: dict[str, Sequence[str | float]] = {
        "GB per device": [f"{p.job.strategy}{'*' if p is chosen else ''}" for p in plans],
        **{f"  {part}": [p.memory.part(part) / GB for p in plans] for part in PARTS},
        "  peak": [p.memory.peak / GB for p in plans],
        "  peak is in": [p.memory.peak_phase for p in plans],
        "  fits": ["yes" if p.fits else "no" for p in plans],
        "  host memory, GB a node": [total(p.memory.host) / GB for p in plans],
        "seconds a step": [total(p.seconds) for p in plans],
        **{f"  {part}": [total(t for t in p.seconds if t.part == part) for p in plans] for part in SECONDS},
        WIRE: [wire(p.job).value / GB for p in plans],
        "decomposition, seconds once": once,
        **({f"hours, all {steps} steps": hours} if steps else {}),
    }
    cells = [
        [name, *(value if isinstance(value, str) else _number(value) for value in values)]
        for name, values in rows.items()
        if any(values) or name == WIRE
    ]
    label, *widths = (max(len(cell) for cell in column) for column in zip(*cells, strict=True))
    lines = [
        f"{name:<{label}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for name, *line in cells
    ]
    return "\n".join([*_heading(chosen), "", *lines, "", *(_verdict(p) for p in plans)])


def explanation(plan: Plan) -> str:
    """Every term of one plan as formula = numbers = value."""
    job = plan.job
    lines = [f"resident ({job.strategy}): {_number(total(plan.memory.resident) / GB)} GB"]
    lines += [f"  {term.explain()}" for term in plan.memory.resident]
    for phase, terms in plan.memory.phases.items():
        lines += [f"{phase}: + {_number(total(terms) / GB)} GB", *(f"  {term.explain()}" for term in terms)]
    lines.append(f"peak: resident + {plan.memory.peak_phase} = {_number(plan.memory.peak / GB)} GB")
    if plan.memory.host:
        lines += ["host memory of a node", *(f"  {term.explain()}" for term in plan.memory.host)]
    lines += ["seconds of a step", *(f"  {term.explain('s', 1)}" for term in plan.seconds)]
    lines += [f"  {wire(job).explain()}"]
    if once := decomposition(job, plan.device):
        lines += ["once", *(f"  {term.explain('s', 1)}" for term in once)]
    return "\n".join(lines)


def _heading(plan: Plan) -> list[str]:
    job, shape = plan.job, plan.job.shape
    method = f"SVF, {readable(shape.num_z)} z, form {job.form}" if job.svf else f"LoRA r {job.rank}"
    packed = f", {job.quantisation.name} base" if job.quantisation else ""
    nodes = f"{job.nodes} x " if job.nodes > 1 else ""
    drawn = "rows drawn by a server (not counted)" if job.elsewhere else f"{job.rollout_rows} rows drawn at a time"
    lines = [
        f"{shape.name} on {nodes}{job.gpus} x {plan.limit / GB:.3g} GB ({plan.device.name})",
        f"{_scaled(shape.params)} parameters of {shape.dtype_bytes} bytes{packed}; {method}, "
        f"{len(shape.tuned)} matrices",
        f"a step: {job.global_rows} rows of {job.prompt_tokens} + {job.completion_tokens} tokens over all devices, "
        f"{job.micro_tokens} tokens a micro-batch, {drawn}",
    ]
    if shape.pictures:
        lines.append(
            f"{job.pictures} pictures a step: {shape.pictures.tokens} tokens each at most, through "
            f"{_scaled(shape.tower)} parameters of tower and projector"
        )
    if not shape.counted:
        lines.append(f"{shape.model_type}: activations are estimated as those of a Llama of these sizes")
    return [*lines, *shape.notes]


def _verdict(plan: Plan) -> str:
    name = plan.job.strategy
    if plan.fits:
        return f"{name}: fits"
    if plan.advised is None:
        return f"{name}: does not fit, whatever is changed on these devices"
    return f"{name}: would fit with {' '.join(changes(plan.job, plan.advised))}"


def _scaled(count: float) -> str:
    """A large number with its unit: 8.03 G, 545 k."""
    size, unit = next(((size, unit) for size, unit in ((1e9, "G"), (1e6, "M")) if count >= size), (1e3, "k"))
    return f"{count / size:.3g} {unit}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 0.1 and value else f"{value:.2f}" if value < 100 else f"{value:.0f}"
