"""A local model folder read one tensor at a time: config.json, and safetensors shards behind a meta-device skeleton.

Nothing here loads a model: a 70B checkpoint costs the memory of the tensor that is being looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2 import tiny
from transformer2.errors import BasisError, DataError

__all__ = ["LocalCheckpoint", "base_folder", "folder_on_disk", "for_readers", "for_weights", "is_trusted"]

# What of `model_kwargs` says where a base's files are, beside `subfolder`; the rest is for who reads them.
_WHERE = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
_WEIGHTS = ("*.safetensors",)


def base_folder(base: str | Path, model_kwargs: Mapping[str, Any] | None = None, weights: bool = True) -> Path:
    """The local folder of a base model: what config, tokenizer, weights and bases are all read from.

    Args:
        base: A folder, "tiny" (the embedded model), or a Hub id, which is downloaded.
        model_kwargs: As `from_pretrained` takes them; `subfolder`, and for a Hub id `revision`, `cache_dir`, `token`
            and `local_files_only`, count here.
        weights: Download the weights too, not only config and tokenizer.

    Raises:
        DataError: No such folder, or the Hub did not give it; the message says what to give instead.
    """
    options = dict(model_kwargs or {})
    inside = str(options.get("subfolder") or "")
    folder = tiny.model_path() if str(base) == "tiny" else Path(base).expanduser()
    if not folder.is_dir():
        if folder.exists() or str(base).startswith((".", "/", "~")) or str(base).count("/") > 1:
            raise DataError(f"base {str(base)!r} is no model folder here; give `tiny`, a folder, or a Hub id")
        folder = _from_hub(str(base), options, f"{inside}/" if inside else "", weights)
    if not (folder / inside / "config.json").is_file():
        raise DataError(f"base {str(folder / inside)!r} has no config.json; give the folder of a transformers model")
    return folder / inside


def _from_hub(base: str, options: Mapping[str, Any], inside: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    where = {key: options[key] for key in _WHERE if options.get(key) is not None}
    # Not the copies that some repositories keep beside the weights (original/, consolidated.safetensors).
    ignored = [f"{inside}*/*", f"{inside}consolidated*"]

    def fetch(patterns: Iterable[str]) -> Path:
        allowed = [inside + pattern for pattern in patterns]
        return Path(snapshot_download(base, allow_patterns=allowed, ignore_patterns=ignored, **where))

    try:
        folder = fetch((*_SMALL, *(_WEIGHTS if weights else ())))
        if weights and not any((folder / inside).glob("*.safetensors")):
            fetch(("*.bin",))
    except Exception as e:  # requests, OS and hub errors alike mean: not to be had from there
        revision = f" at revision {where['revision']!r}" if "revision" in where else ""
        raise DataError(
            f"base {base!r}{revision} is no folder here and the Hub did not give it ({type(e).__name__}); give "
            "model.base a local folder (download it where there is a network), or `tiny`"
        ) from e
    return folder


def for_readers(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of `model_kwargs` the readers of config and tokenizer need, now that the files are in a folder."""
    given = model_kwargs or {}
    known = {key: given[key] for key in ("trust_remote_code", "code_revision") if key in given}
    return {"trust_remote_code": False, **known}  # not said, transformers would ask, and wait


def for_weights(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of `model_kwargs` the reader of the weights needs."""
    rest = {key: value for key, value in (model_kwargs or {}).items() if key not in (*_WHERE, "subfolder")}
    return {"trust_remote_code": False, **rest}


def is_trusted(model: nn.Module) -> bool:
    """Whether a loaded model runs code out of its folder, which somebody trusted then."""
    return type(getattr(model, "config", None)).__module__.startswith("transformers_modules")


def folder_on_disk(base: str) -> Path | None:
    """The folder of a base model that is on this machine already, by path or by Hub id; None otherwise."""
    folder = Path(base).expanduser()
    if base and (folder / "config.json").is_file():
        return folder
    if base.count("/") != 1:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=[*_SMALL, *_WEIGHTS], local_files_only=True))
    except Exception:  # whatever the reason, it is not to be had without the network
        return None


class LocalCheckpoint:
    """One model folder.

    Args:
        folder: Holds config.json and model.safetensors, or model.safetensors.index.json with its shards.
        dtype: The dtype the tensors are read in; None means the checkpoint's own, as `from_pretrained` does.
        trust_remote_code: Run the Python files in it, where its model class is not transformers' own.

    Raises:
        BasisError: The folder has no config or no readable safetensors weights.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype | None = None, trust_remote_code: bool = False):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise BasisError(f"{self.folder} has no config.json; give the folder of a transformers model")
        self._requested_dtype, self._trusted = dtype, trust_remote_code

    @cached_property
    def config(self) -> Any:
        """The transformers config of the folder."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(str(self.folder), trust_remote_code=self._trusted)
        except (ValueError, KeyError, OSError, ImportError) as e:
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
                if cls is None:
                    return causal.from_config(self.config, trust_remote_code=self._trusted)
                return cls._from_config(self.config)
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
