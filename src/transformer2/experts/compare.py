"""What experts learnt, in figures: how alike they are, how far they went, and where on the spectrum.

"RLVR moves off the principal directions" (arXiv 2511.08567): the drift columns say whether z moved on the largest, the
middle or the smallest third of the singular values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from transformer2.errors import shown
from transformer2.experts.folder import Expert, read_expert
from transformer2.experts.mix import check_compatible
from transformer2.svf.card import facts_of
from transformer2.svf.format import module_kind

__all__ = ["Comparison", "compare_experts", "show_expert"]


@dataclass(frozen=True)
class Comparison:
    """Figures of some experts; `str()` gives them as Markdown tables.

    Attributes:
        cosine: Pair of names -> module kind (and "all") -> cosine of the two z - 1; NaN where one is zero.
        rms: Name -> module kind (and "all") -> root mean square of z - 1.
        drift: Name -> rms of z - 1 over the first, second and last third of each spectrum.
    """

    cosine: dict[tuple[str, str], dict[str, float]]
    rms: dict[str, dict[str, float]]
    drift: dict[str, tuple[float, float, float]]

    def __str__(self) -> str:
        kinds = list(next(iter(self.rms.values())))
        rows = [
            [name, *(f"{r[k]:.2e}" for k in kinds), *(f"{d:.2e}" for d in self.drift[name])]
            for name, r in self.rms.items()
        ]
        head = ["rms of z - 1", *kinds, "top third", "middle third", "last third"]
        tables = [_table(head, rows)]
        if self.cosine:
            pairs = [[f"{a} · {b}", *(f"{c[k]:+.3f}" for k in kinds)] for (a, b), c in self.cosine.items()]
            tables.append(_table(["cosine of z - 1", *kinds], pairs))
        return "\n\n".join(tables)


def compare_experts(experts: Sequence[Expert]) -> Comparison:
    """Compare experts that fit each other; one alone gets its own figures.

    Raises:
        ExpertError: They do not fit each other.
    """
    check_compatible(experts)
    kinds: dict[str, list[str]] = defaultdict(list)
    for module in experts[0].deltas:
        kinds[module_kind(module)].append(module)
    groups = {**kinds, "all": list(experts[0].deltas)}

    def joined(expert: Expert, modules: Iterable[str]) -> Tensor:
        return torch.cat([expert.deltas[m].double() for m in modules])

    return Comparison(
        cosine={
            (a.name, b.name): {k: _cosine(joined(a, ms), joined(b, ms)) for k, ms in groups.items()}
            for a, b in combinations(experts, 2)
        },
        rms={e.name: {k: _rms(joined(e, ms)) for k, ms in groups.items()} for e in experts},
        drift={e.name: _drift(e) for e in experts},
    )


def show_expert(path: str | Path) -> str:
    """`transformer2 experts show PATH`: an expert's facts and figures, verified.

    Raises:
        ExpertError: The folder is damaged or no expert.
    """
    expert = read_expert(path)
    z = torch.cat([delta_R.double() + 1 for delta_R in expert.deltas.values()])
    facts = {
        "expert": expert.name,
        "base model": expert.base,
        **facts_of({**vars(expert), "base_quantisation": expert.base_quantisation or "not at all"}),
        "tuned matrices": len(expert.deltas),
        "numbers": z.numel(),
        "z": f"{z.min():.4f} to {z.max():.4f}, mean {z.mean():.4f}",
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {'-' if value is None else shown(value)}" for name, value in facts.items()]
    return "\n".join([*lines, "", str(compare_experts([expert]))])


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else float("nan")


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _drift(expert: Expert) -> tuple[float, float, float]:
    thirds = [delta_R.double().tensor_split(3) for delta_R in expert.deltas.values()]
    top, middle, last = (_rms(torch.cat(parts)) for parts in zip(*thirds, strict=True))
    return top, middle, last


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
