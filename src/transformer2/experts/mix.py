"""Experts made of others: several mixed into one (the formulas: svf/mixing.py), and the shuffled control."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from transformer2.errors import ExpertError
from transformer2.experts.folder import Expert, read_expert, save_expert
from transformer2.svf.format import mixture_facts, plain_name
from transformer2.svf.mixing import Mix, mix_deltas, mixing_weights

__all__ = [
    "check_compatible", "load_experts", "mix_experts", "mix_folders", "mixture", "shuffle_expert", "shuffle_folder",
]  # fmt: skip


def load_experts(paths: Sequence[str | Path] | str | Path) -> list[Expert]:
    """Read experts that can be mixed: of one architecture, with the same tuned matrices; one path is one expert.

    Raises:
        ExpertError: One of them is damaged, two have the same name, or they do not fit each other; names both.
    """
    experts = [read_expert(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    check_compatible(experts)
    return experts


def check_compatible(experts: Sequence[Expert]) -> None:
    """Whether experts can be mixed. Warns where only the base weights differ (another dtype, another checkpoint).

    Raises:
        ExpertError: None given, equal names, other tuned matrices or lengths, or another base architecture.
    """
    if not experts:
        raise ExpertError("no experts given; name at least one expert folder")
    first = experts[0]
    for i, other in enumerate(experts[1:], 1):
        if any(other.name == e.name for e in experts[:i]):
            raise ExpertError(f"two experts are called {other.name!r}; rename one of the folders")
        pair = f"experts {first.name!r} and {other.name!r}"
        differing = sorted(first.deltas.keys() ^ other.deltas.keys())
        if differing:
            raise ExpertError(
                f"{pair} tune different matrices ({len(differing)}, first: {differing[0]}); mix like with like"
            )
        for module, delta_R in first.deltas.items():
            if delta_R.shape != other.deltas[module].shape:
                raise ExpertError(
                    f"{pair} differ in length on {module} ({delta_R.numel()}, {other.deltas[module].numel()}); "
                    "they belong to different base models"
                )
        prints = [first.base_fingerprint, other.base_fingerprint]
        if None in prints or prints[0] == prints[1]:
            continue
        if len({str(one).partition(":")[0] for one in prints}) > 1:
            raise ExpertError(
                f"{pair} have base models of different architecture ({first.base}, {other.base}); mix experts of one "
                "base"
            )
        warnings.warn(
            f"{pair} were trained on different weights of one architecture ({first.base}, {other.base}, or one base in "
            "two dtypes)",
            stacklevel=3,
        )


def mix_experts(
    experts: Sequence[Expert], weights: Sequence[float], mix: Mix = "delta", name: str = "mixture"
) -> Expert:
    """One expert out of several.

    Args:
        experts: K experts that fit each other.
        weights: K finite numbers.
        mix: See svf/mixing.py.
        name: Name of the new expert.

    Raises:
        ExpertError: The experts do not fit each other.
        UserError: Unknown mix, not K weights, some beyond -100 to 100, or a zero sum to divide by.
    """
    check_compatible(experts)
    weights_K = mixing_weights(weights, len(experts), mix)
    return mixture(experts, dict.fromkeys(experts[0].deltas, weights_K), mix, name)


def mixture(
    experts: Sequence[Expert], weights: Mapping[str, Tensor], mix: Mix, name: str, task: str | None = None
) -> Expert:
    """The expert that mixes others by weights of each matrix's own.

    Args:
        experts: K experts; one that does not tune a matrix has z = 1 there.
        weights: Module path -> K weights, normalised already where that is wanted.
        mix: "delta" or "raw".
        name: Its name.
        task: What it is for.
    """
    deltas = {}
    for matrix, weights_K in weights.items():
        given = [e.deltas.get(matrix) for e in experts]
        like = next((delta_R for delta_R in given if delta_R is not None), None)
        if like is not None:
            whole = [torch.zeros_like(like) if delta_R is None else delta_R for delta_R in given]
            deltas[matrix] = mix_deltas(weights_K, [delta_R.double() for delta_R in whole], mix).float()
    tuned = [e for e in experts if e.deltas] or experts
    return Expert(name, task=task, base=experts[0].base, deltas=deltas, **mixture_facts(tuned))


def mix_folders(paths: Sequence[str | Path], weights: Sequence[float], out: str | Path, mix: Mix = "delta") -> str:
    """`transformer2 experts mix A B --weights 0.7 0.7 --out DIR`: mix, save, and say what was done.

    Raises:
        UserError: See `load_experts`, `mix_experts` and `save_expert`.
    """
    experts = load_experts(paths)
    folder = save_expert(mix_experts(experts, weights, mix, name=plain_name(Path(out).name)), out)
    parts = " + ".join(f"{w:g} {e.name}" for w, e in zip(weights, experts, strict=True))
    return f"{folder}: {mix} mixture {parts}, {len(experts[0].deltas)} matrices"


def shuffle_expert(expert: Expert, seed: int) -> Expert:
    """The control of the paper's Table 5: the same values of z on the same matrices, permuted within each.

    It has no step and score, which are not its own.

    Args:
        expert: The expert.
        seed: With the expert's weights and the matrix' path it decides each permutation, so that experts shuffled by
            one seed have nothing in common.
    """

    def permuted(module: str, delta_R: Tensor) -> Tensor:
        digest = hashlib.sha256(f"{seed} {module}".encode() + delta_R.numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return delta_R[torch.randperm(delta_R.numel(), generator=generator)]

    deltas = {module: permuted(module, delta_R) for module, delta_R in expert.deltas.items()}
    return replace(expert, path=None, step=None, score=None, sha256=None, deltas=deltas, shuffled=seed)


def shuffle_folder(folder: str | Path, out: str | Path, seed: int) -> Path:
    """`transformer2 experts shuffle DIR --seed N --out DIR`: `shuffle_expert` from folder to folder.

    Raises:
        ExpertError: `folder` is damaged or no SVF expert, or `out` exists or cannot be written.
    """
    return save_expert(shuffle_expert(read_expert(folder), seed), out)
