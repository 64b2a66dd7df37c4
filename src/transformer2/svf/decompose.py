"""`transformer2 decompose`: fill the basis cache of a base model, one matrix at a time, straight from its files.

    transformer2 decompose --model.base /models/Llama-3.1-8B-Instruct

The model is never loaded: its skeleton on the meta device says which matrices are tuned, and each is read from its
shard when its turn comes. Stop it whenever you like and start it again: what is there and verifies is not done twice.

Many processes share the work, each on its own GPU where there are several; they need not know of each other, for the
cache locks every entry, and one that is missing at the end is built by the next run or by `fit`:

    torchrun --nproc_per_node 8 -m transformer2 decompose --model.base /models/Meta-Llama-3-70B-Instruct
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from transformer2.errors import ConfigError, UserError, one_line
from transformer2.svf.base_folder import check_options
from transformer2.svf.basis import Basis, singular_values
from transformer2.svf.cache import BasisCache, of_matrix
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.config import SVFConfig
from transformer2.svf.fingerprint import fingerprint_checkpoint
from transformer2.svf.targets import find_targets

__all__ = ["Spectra", "bases", "decompose", "spectra"]

T = TypeVar("T")


def decompose(
    base: str | Path,
    target_modules: str | list[str] = "mlp",
    layers_to_transform: int | list[int] | None = None,
    cache_dir: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    progress: bool = True,
    exclude_modules: str | list[str] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute and cache the basis of every matrix that SVF would tune, or under torchrun this process' share of them.

    Args:
        base: Local model folder, a Hub id, or "tiny".
        target_modules: As in SVFConfig: "mlp", "attention", "all-linear", names, or a regular expression.
        layers_to_transform: As in SVFConfig: layers to do; None means all.
        cache_dir: Root of the cache; None means the default one.
        dtype: The dtype the model will be trained in ("bfloat16"), for it is part of the cache's key; None means
            that of `dtype: auto`.
        device: Where to compute; None means the GPU where there is one (of this process: LOCAL_RANK).
        progress: Show a bar with the time left (on rank 0).
        exclude_modules: As in SVFConfig: module names, or a regular expression, to leave out.
        model_kwargs: As the model will be loaded with: `revision`, `subfolder`, `cache_dir`, `trust_remote_code`, ...

    Returns:
        What this process did: base, fingerprint, folder, matrices, built, reused, quarantined, bytes (on disk),
        seconds.

    Raises:
        UserError: Unknown base or dtype, nothing to tune, a quantised or damaged checkpoint, or a cache that cannot be
            written. What was done until then is kept.
    """
    start = time.monotonic()
    which = SVFConfig(
        target_modules=target_modules, layers_to_transform=layers_to_transform, exclude_modules=exclude_modules
    )
    checkpoint, found = _matrices(base, which, dtype, device, model_kwargs)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    names = _share(_costs(checkpoint, found), rank, world_size)
    cache = BasisCache(cache_dir, fingerprint_checkpoint(checkpoint))
    for _ in bases(checkpoint, names, cache, progress and rank == 0, device):
        pass
    return {
        "base": str(base),
        "fingerprint": cache.fingerprint,
        "folder": str(cache.folder),
        "matrices": len(names),
        **{what: cache.counts[what] for what in ("built", "reused", "quarantined")},
        "bytes": sum(cache.path(name).stat().st_size for name in names),
        "seconds": round(time.monotonic() - start, 3),
    }


def bases(
    checkpoint: LocalCheckpoint, names: Sequence[str], cache: BasisCache, progress: bool, device: str | None = None
) -> Iterator[tuple[str, Basis]]:
    """(module path, basis) of some matrices of a base model, through its cache, where each is checked against W.

    Args:
        checkpoint: The files of the base.
        names: Module paths.
        cache: Of this base.
        progress: Show a bar with the time left.
        device: Where to compute; None means the GPU where there is one.

    Raises:
        UserError: A module that the base does not have, or a cache that cannot be written.
    """

    def get(name: str) -> Basis:
        return cache.get(name, partial(_weight, checkpoint, name, device), verify=True)

    return _in_turn(checkpoint, names, progress, "decompose", get)


@dataclass(frozen=True)
class Spectra:
    """The singular values of a base model's matrices, of which one at a time is in memory.

    Attributes:
        fingerprint: Of the base model.
        names: Module paths, in module order.
        values: (module path, sigma (r,) fp64, decreasing) one after the other.
    """

    fingerprint: str
    names: list[str]
    values: Iterator[tuple[str, Tensor]]


def spectra(
    base: str | Path,
    target_modules: str | list[str] = "all-linear",
    layers_to_transform: int | list[int] | None = None,
    exclude_modules: str | list[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    progress: bool = True,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Spectra:
    """The singular values of every matrix that SVF would tune: no directions, no cache, no model in memory.

    Args:
        base: As for `decompose`, and so are the others.
        target_modules: Which matrices.
        layers_to_transform: Of which layers; None means all.
        exclude_modules: Which to leave out.
        dtype: The dtype the weights are read in.
        device: Where to compute.
        progress: Show a bar with the time left.
        model_kwargs: As the model would be loaded with.

    Raises:
        UserError: As `decompose`.
    """
    which = SVFConfig(
        target_modules=target_modules, layers_to_transform=layers_to_transform, exclude_modules=exclude_modules
    )
    checkpoint, names = _matrices(base, which, dtype, device, model_kwargs)

    def sigma(name: str) -> Tensor:
        return of_matrix(name, lambda: singular_values(_weight(checkpoint, name, device)))

    values = _in_turn(checkpoint, names, progress, "spectrum", sigma)
    return Spectra(fingerprint_checkpoint(checkpoint), names, values)


def _matrices(
    base: str | Path,
    which: SVFConfig,
    dtype: str | torch.dtype | None,
    device: str | None,
    model_kwargs: Mapping[str, Any] | None,
) -> tuple[LocalCheckpoint, list[str]]:
    """The files of a base, and the paths of the matrices that a config tunes, once all arguments are checked."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # torch built without CUDA asserts
        raise ConfigError(f"--device {device!r} cannot be used here ({one_line(e)}); leave it out") from e
    checkpoint = LocalCheckpoint.of_base(base, model_kwargs, _dtype(dtype))
    check_options(checkpoint.config, model_kwargs)
    if checkpoint.quantised:
        raise UserError(
            f"{checkpoint.folder} is a quantised checkpoint; decompose the model it was made from, or let SVF compute "
            "the bases when it wraps the loaded model"
        )
    return checkpoint, find_targets(checkpoint.skeleton, which)


def _in_turn(
    checkpoint: LocalCheckpoint, names: Sequence[str], progress: bool, what: str, work: Callable[[str], T]
) -> Iterator[tuple[str, T]]:
    """(module path, what `work` gives for it), one matrix after the other, with a bar."""
    # The bar counts arithmetic, so that the time left holds for matrices of unlike sizes.
    costs = _costs(checkpoint, names)
    with tqdm(total=sum(costs.values()), unit="flop", unit_scale=True, disable=not progress, desc=what) as bar:
        for done, (name, cost) in enumerate(costs.items()):
            bar.set_postfix_str(f"{done}/{len(names)} {name}")
            yield name, work(name)
            bar.update(cost)


def _weight(checkpoint: LocalCheckpoint, name: str, device: str | None) -> Tensor:
    """W of a matrix; by default on the GPU of this process, where there are GPUs."""
    if device is None and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return checkpoint.matrix(name).to(device or "cpu")


def _share(costs: Mapping[str, int], rank: int, world_size: int) -> list[str]:
    """The matrices of one process: the most costly first, each to the process with the least to do; in module order."""
    load = [0] * world_size
    mine: set[str] = set()
    for name in sorted(costs, key=lambda name: -costs[name]):
        owner = load.index(min(load))
        load[owner] += costs[name]
        if owner == rank:
            mine.add(name)
    return [name for name in costs if name in mine]


def _costs(checkpoint: LocalCheckpoint, names: Sequence[str]) -> dict[str, int]:
    """Flops of each matrix, about: the Gram matrix, ||W p||, and an eigendecomposition."""
    costs = {}
    for name in names:
        try:
            weight = getattr(checkpoint.skeleton.get_submodule(name), "weight", None)
        except AttributeError:
            raise ConfigError(f"{checkpoint.folder} has no module {name!r}; is this another base model?") from None
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise ConfigError(f"{name} of {checkpoint.folder} is not a linear layer; name linear layers")
        r = min(weight.shape)
        costs[name] = 4 * r * weight.numel() + 9 * r**3
    return costs


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConfigError(f"dtype={dtype!r} is not a floating dtype; use 'bfloat16', 'float16' or 'float32'")
    return found
