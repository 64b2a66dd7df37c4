"""A local model folder read one tensor at a time: config.json, and safetensors shards behind a meta-device skeleton.

Nothing here loads a model: a 70B checkpoint costs the memory of the tensor that is being looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2.errors import BasisError, one_line
from transformer2.svf.base_folder import base_folder, for_readers, on_disk
from transformer2.svf.dtype import auto_dtype

__all__ = ["LocalCheckpoint", "auto_class"]


def auto_class(config: Any) -> Any:
    """The Auto class of transformers that loads a base: AutoModelForImageTextToText where no other knows its config."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    text = type(config) in AutoModelForCausalLM._model_mapping  # of some checkpoints of several modalities it alone
    pictures = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if pictures and not text else AutoModelForCausalLM


class LocalCheckpoint:
    """One model folder.

    Args:
        folder: Holds config.json and model.safetensors, or model.safetensors.index.json with its shards.
        dtype: The dtype the tensors are read in; None means that of `dtype: auto`, as `load_base` takes it.
        trust_remote_code: Run the Python files in it, where its model class is not transformers' own.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype | None = None, trust_remote_code: bool = False):
        self.folder = Path(folder)
        self._requested_dtype, self._trusted = dtype, trust_remote_code

    @classmethod
    def of_base(
        cls,
        base: str | Path,
        model_kwargs: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        weights: bool = True,
    ) -> LocalCheckpoint:
        """The files of `base` as a config names it; see `base_folder`."""
        trusted = for_readers(model_kwargs)["trust_remote_code"]
        return cls(base_folder(base, model_kwargs, weights), dtype, bool(trusted))

    @classmethod
    def of_model(cls, model: nn.Module, dtype: torch.dtype) -> LocalCheckpoint | None:
        """The files that a model was loaded from, where they are on this machine."""
        config = getattr(model, "config", None)
        folder = on_disk(str(getattr(config, "_name_or_path", "")))
        # Code that runs out of the folder was trusted when the model was loaded.
        trusted = type(config).__module__.startswith("transformers_modules")
        return None if folder is None else cls(folder, dtype, trusted)

    @cached_property
    def config(self) -> Any:
        """The transformers config of the folder."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(str(self.folder), trust_remote_code=self._trusted)
        except (ValueError, KeyError, TypeError, OSError, ImportError, StrictDataclassError) as e:
            raise BasisError(f"{self.folder / 'config.json'}: {one_line(e)}") from e

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device: every module and shape, no values."""
        from transformers.modeling_utils import set_zero3_state

        try:
            # The second says that zero.Init is at work already: a skeleton has no values to shard under ZeRO-3.
            with torch.device("meta"), set_zero3_state():
                return auto_class(self.config).from_config(self.config, trust_remote_code=self._trusted)
        except (ValueError, KeyError, ImportError, TypeError) as e:  # the last: a dtype that no model can be made in
            raise BasisError(f"{self.folder}: the model cannot be built from its config: {one_line(e)}") from e

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
        return self._requested_dtype or auto_dtype(self.config) or self.tensor_dtype or torch.float32

    @property
    def tensor_dtype(self) -> torch.dtype | None:
        """The dtype of the first tensor in the files that has a floating-point one; None without such files."""
        try:
            first_rows = (self.read_rows(key, lambda count: range(min(count, 1))) for key in self.shard_of)
            return next((row.dtype for row in first_rows if row.is_floating_point()), None)
        except BasisError:
            return None

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
        with self._open(key) as f:
            part = f.get_slice(key)
            shape = part.get_shape()
            if not shape:
                return f.get_tensor(key)[None]
            return torch.cat([part[i : i + 1] for i in choose(shape[0])] or [f.get_tensor(key)])

    @contextmanager
    def _open(self, key: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.shard_of[key]), "pt") as f:
                yield f
        except (SafetensorError, OSError) as e:
            raise BasisError(
                f"{self.shard_of[key]}: tensor {key!r} is unreadable ({e}); download the shard again"
            ) from e

    def matrix(self, module: str) -> Tensor:
        """W (m, n) of a linear layer of the model, in `dtype`."""
        key = self.key_of(f"{module}.weight")
        with self._open(key) as f:
            weight: Tensor = f.get_tensor(key)
        weight = weight.to(self.dtype) if weight.is_floating_point() else weight
        return weight.T if isinstance(self.skeleton.get_submodule(module), Conv1D) else weight
