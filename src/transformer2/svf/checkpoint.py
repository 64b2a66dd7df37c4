"""A local model folder read one tensor at a time: config.json, and safetensors shards behind a meta-device skeleton.

Nothing here loads a model: a 70B checkpoint costs the memory of the tensor that is being looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2.errors import BasisError, UserError

__all__ = ["LocalCheckpoint", "folder_on_disk", "resolve_base"]

_FILES = ["*.json", "*.safetensors"]


def resolve_base(base: str | Path) -> Path:
    """The local folder of a base model.

    Args:
        base: A folder, "tiny" (the embedded model), or a Hub id, which is downloaded (config and safetensors only).

    Raises:
        UserError: No such folder, or the Hub cannot be reached.
    """
    if str(base) == "tiny":
        from transformer2.tiny import model_path

        return Path(model_path())
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or str(base).startswith((".", "/", "~")) or str(base).count("/") != 1:
        raise UserError(
            f"base {str(base)!r} is not a model folder; give a folder with config.json, a Hub id, or 'tiny'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(base), allow_patterns=_FILES))
    except Exception as e:  # requests, OS and hub errors alike mean: not to be had from there
        raise UserError(
            f"base {str(base)!r} is no local folder and the Hub did not give it ({type(e).__name__}); "
            "download it where there is a network and give the local folder"
        ) from e


def folder_on_disk(base: str) -> Path | None:
    """The folder of a base model that is on this machine already, by path or by Hub id; None otherwise."""
    folder = Path(base).expanduser()
    if base and (folder / "config.json").is_file():
        return folder
    if base.count("/") != 1:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=_FILES, local_files_only=True))
    except Exception:  # whatever the reason, it is not to be had without the network
        return None


class LocalCheckpoint:
    """One model folder.

    Args:
        folder: Holds config.json and model.safetensors, or model.safetensors.index.json with its shards.
        dtype: The dtype the tensors are read in; None means the checkpoint's own, as `from_pretrained` does.

    Raises:
        BasisError: The folder has no config or no readable safetensors weights.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype | None = None):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise BasisError(f"{self.folder} has no config.json; give the folder of a transformers model")
        self._requested_dtype = dtype

    @cached_property
    def config(self) -> Any:
        """The transformers config of the folder."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(str(self.folder))
        except (ValueError, KeyError, OSError) as e:
            raise BasisError(f"{self.folder / 'config.json'}: {str(e).splitlines()[0]}") from e

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device: every module and shape, no values."""
        import transformers

        names = getattr(self.config, "architectures", None) or []
        causal = transformers.AutoModelForCausalLM
        # What `load_base` loads: of some checkpoints of several modalities the text model alone.
        cls = None if type(self.config) in causal._model_mapping else getattr(transformers, "".join(names[:1]), None)
        try:
            # The second says that zero.Init is at work already: a skeleton has no values to share out under ZeRO-3.
            with torch.device("meta"), transformers.modeling_utils.set_zero3_state():
                return causal.from_config(self.config) if cls is None else cls._from_config(self.config)
        except (ValueError, KeyError, ImportError) as e:
            raise BasisError(
                f"{self.folder}: the model cannot be built from its config: {str(e).splitlines()[0]}"
            ) from e

    @cached_property
    def shard_of(self) -> dict[str, Path]:
        """Checkpoint key -> the shard that holds it."""
        from safetensors import SafetensorError, safe_open

        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        try:
            if index.is_file():
                weight_map = json.loads(index.read_text())["weight_map"]
                shards = {key: self.folder / Path(file).name for key, file in weight_map.items()}
                missing = sorted({p.name for p in shards.values() if not p.is_file()})
                if missing:
                    raise BasisError(f"{self.folder} lacks {missing[0]} ({len(missing)} shards); download it again")
                return shards
            if not single.is_file():
                raise BasisError(f"{self.folder} has no safetensors weights; save the model with save_pretrained first")
            with safe_open(str(single), "pt") as f:
                return dict.fromkeys(f.keys(), single)
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as e:
            raise BasisError(f"{self.folder}: unreadable weights or index ({type(e).__name__}: {e})") from e

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype the tensors are read in."""
        if self._requested_dtype is not None:
            return self._requested_dtype
        configured = getattr(self.config, "dtype", None)
        if isinstance(configured, torch.dtype):
            return configured
        for key in self.shard_of:
            sample = self.read_rows(key, lambda count: range(min(count, 1)))
            if sample.is_floating_point():
                return sample.dtype
        return torch.float32

    def key_of(self, parameter: str) -> str:
        """The checkpoint key of a parameter name of the model.

        Some checkpoints carry the bare backbone (`layers.0...` for `model.layers.0...`), some the other way round.

        Raises:
            BasisError: No such key; the message says the nearest one.
        """
        key = self._key(parameter)
        if key is not None:
            return key
        near = get_close_matches(parameter, self.shard_of, n=1, cutoff=0.0)
        raise BasisError(
            f"{self.folder} has no tensor for {parameter!r} (nearest: {near[0] if near else 'none'}); "
            "transformers renames or fuses it at load, so load the model and let SVF compute its bases there"
        )

    def _key(self, parameter: str) -> str | None:
        prefix = getattr(self.skeleton, "base_model_prefix", "") + "."
        candidates = (parameter, parameter.removeprefix(prefix), prefix + parameter)
        return next((key for key in candidates if key in self.shard_of), self._renamed.get(parameter))

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """Parameter -> checkpoint key, by transformers' rules for names at load; what it fuses is left out."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        rules = get_model_conversion_mapping(cast(Any, self.skeleton)) or []
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        fusions: list[Any] = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
        names = {key: rename_source_key(key, renamings, fusions) for key in self.shard_of}
        return {name: key for key, (name, fusion) in names.items() if fusion is None}

    @property
    def quantised(self) -> bool:
        """Whether the weights in the files are packed ones."""
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def complete(self) -> bool:
        """Whether every parameter of the model has its own tensor; not so where transformers fuses some at load."""
        return all(self._key(name) is not None for name, _ in self.skeleton.named_parameters())

    def read_rows(self, key: str, choose: Callable[[int], Sequence[int]]) -> Tensor:
        """Some rows of the tensor under a checkpoint key, stacked, in the file's dtype; a scalar has one row.

        Args:
            key: A checkpoint key.
            choose: Given the number of rows, the indices to read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.shard_of[key]), "pt") as f:
                part = f.get_slice(key)
                shape = part.get_shape()
                if not shape:
                    return f.get_tensor(key)[None]
                return torch.cat([part[i : i + 1] for i in choose(shape[0])] or [f.get_tensor(key)])
        except (SafetensorError, OSError) as e:
            raise BasisError(
                f"{self.shard_of[key]}: tensor {key!r} is unreadable ({e}); download the shard again"
            ) from e

    def read(self, parameter: str) -> Tensor:
        """The whole tensor of a parameter, in `dtype`."""
        from safetensors import SafetensorError, safe_open

        key = self.key_of(parameter)
        try:
            with safe_open(str(self.shard_of[key]), "pt") as f:
                tensor: Tensor = f.get_tensor(key)
        except (SafetensorError, OSError) as e:
            raise BasisError(
                f"{self.shard_of[key]}: tensor {key!r} is unreadable ({e}); download the shard again"
            ) from e
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def matrix(self, module: str) -> Tensor:
        """W (m, n) of a linear layer of the model, in `dtype`."""
        weight = self.read(f"{module}.weight")
        return weight.T if isinstance(self.skeleton.get_submodule(module), Conv1D) else weight
