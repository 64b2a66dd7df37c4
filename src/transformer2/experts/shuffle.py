"""The control of the paper's Table 5: the z of an expert in another order, so that no value is where it was learnt."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from transformer2.experts.folder import Expert, read_expert, save_expert

__all__ = ["shuffle_expert", "shuffle_folder"]


def shuffle_expert(expert: Expert, seed: int) -> Expert:
    """The same values of z on the same matrices, permuted within each; without step and score, which are not its own.

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
