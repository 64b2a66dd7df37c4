"""What `model_kwargs` may hold: arguments of transformers' `from_pretrained`, and keys of the model's own config."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from transformer2.errors import ConfigError

LOADING = {  # any other key `from_pretrained` treats as one of the model config's
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
