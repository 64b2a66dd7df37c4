"""Bases on disk: one safetensors file per matrix, safe against crashes, full disks, damage and many writers.

    <root>/<fingerprint>/v<code version>/<module path>-<hash>.safetensors

The fingerprint covers the weights and the dtype they were loaded in. An entry is written to a temp file in the same
folder, fsynced, renamed and the folder fsynced, under a lock per entry, so it is whole or absent. On load its sha256
and a sample of its columns' orthogonality are checked; what fails is renamed to `*.damaged` and rebuilt, with a
warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from transformer2.errors import BasisError
from transformer2.files import cache_root, write_file
from transformer2.svf.basis import Basis, basis_error, compute_basis

__all__ = ["BasisCache", "of_matrix"]

T = TypeVar("T")
VERSION = 1  # of the file format and of `compute_basis`; another version is another folder
_ORTHOGONALITY, _RECONSTRUCTION = 1e-4, 1e-4  # an fp32 basis is at about 1e-6


class BasisCache:
    """The bases of one base model.

    Args:
        root: Folder of the cache, made when the first entry is written; None means `$TRANSFORMER2_CACHE/basis`, or
            `~/.cache/transformer2/basis`.
        fingerprint: What `fingerprint(model)` says of the base model.

    Attributes:
        folder: Where this model's entries are.
        counts: How many entries this object has `built`, `reused` and `quarantined`.
    """

    def __init__(self, root: str | Path | None, fingerprint: str):
        self.fingerprint = fingerprint
        self.folder = Path(root or cache_root() / "basis").expanduser() / _safe_name(fingerprint) / f"v{VERSION}"
        self.counts: Counter[str] = Counter()

    def path(self, name: str) -> Path:
        """The file of a matrix; any string makes a safe name, and different strings make different ones."""
        return self.folder / f"{_safe_name(name)}.safetensors"

    def get(self, name: str, weight: Callable[[], Tensor], verify: bool = False) -> Basis:
        """The basis of one matrix, from disk, or computed and put there.

        Processes that ask for the same missing entry wait for the one that computes it.

        Args:
            name: Module path, e.g. "model.layers.0.mlp.up_proj".
            weight: Gives W (m, n); called only on a miss, unless `verify`.
            verify: Check also, on a sample of columns, that the stored basis is that of the weight.

        Returns:
            The basis, on the CPU.

        Raises:
            BasisError: The weight has no basis (the message names the matrix), or the cache cannot be written.
        """
        path = self.path(name)
        try:
            basis = self._load(path, name, weight if verify else None)
            if basis is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    basis = self._load(path, name, weight if verify else None, quarantine=True)
                    if basis is None:
                        return self._build(path, name, weight)
        except OSError as e:
            raise BasisError(
                f"basis cache {path}: {e.strerror or e}; free some space, or name a writable folder (basis_cache, "
                "cache_dir or $TRANSFORMER2_CACHE)"
            ) from e
        self.counts["reused"] += 1
        return basis

    def _build(self, path: Path, name: str, weight: Callable[[], Tensor]) -> Basis:
        basis = of_matrix(name, lambda: compute_basis(weight())).to("cpu")
        meta = {"name": name, "fingerprint": self.fingerprint, "side": basis.side, "version": str(VERSION)}
        meta["sha256"] = _digest(meta, basis.vectors_RR, basis.sigma_R)
        # One metadata entry: safetensors keeps several in no fixed order, and a rebuilt file should be the same bytes.
        header = {"basis": json.dumps(meta, sort_keys=True)}
        data = save({"vectors": basis.vectors_RR, "sigma": basis.sigma_R}, metadata=header)
        # Under the entry's lock: a leftover of a killed writer is overwritten by the next one.
        write_file(path, data, path.with_name(f".{path.name}.tmp"))
        self.counts["built"] += 1
        return basis

    def _load(
        self, path: Path, name: str, weight: Callable[[], Tensor] | None, quarantine: bool = False
    ) -> Basis | None:
        """The entry, or None when it is absent or damaged; only the holder of its lock moves a damaged one away."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        weight_mn = weight() if weight else None  # what cannot be read of it is no fault of the basis
        try:
            basis = self._parse(data, name)
            orthogonality, reconstruction = basis_error(basis, weight_mn)
            if not orthogonality <= _ORTHOGONALITY:
                raise BasisError(f"columns are not orthogonal (off by {orthogonality:.1e})")
            if reconstruction is not None and not reconstruction <= _RECONSTRUCTION:
                raise BasisError(f"it is not the basis of this weight (off by {reconstruction:.1e})")
            return basis
        except (BasisError, SafetensorError, ValueError, KeyError, TypeError) as e:
            if quarantine:
                os.replace(path, f"{path}.damaged")
                self.counts["quarantined"] += 1
                warnings.warn(f"damaged basis {path.name} set aside as *.damaged and rebuilt: {e}", stacklevel=4)
            return None

    def _parse(self, data: bytes, name: str) -> Basis:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header["__metadata__"]["basis"])
        tensors = load(data)
        vectors_RR, sigma_R = tensors["vectors"], tensors["sigma"]
        stored = meta.pop("sha256")
        if stored != _digest(meta, vectors_RR, sigma_R):
            raise BasisError("its sha256 differs from the recorded one")
        if (meta["name"], meta["fingerprint"]) != (name, self.fingerprint):
            raise BasisError(f"it belongs to {meta['name']} of {meta['fingerprint']}")
        return Basis(meta["side"], vectors_RR, sigma_R)


def of_matrix(name: str, compute: Callable[[], T]) -> T:
    """What is computed of a matrix; errors name it."""
    try:
        return compute()
    except BasisError as e:
        raise BasisError(f"{name}: {e}") from e


def _safe_name(text: str) -> str:
    """A file name for any text: readable, bounded, and different for different texts (also where case is ignored)."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip(".")[:100]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _digest(meta: dict[str, str], *tensors: Tensor) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()
