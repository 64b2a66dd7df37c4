"""What `dtype: auto` means: as stored; on a CPU alone, 16-bit weights in the dtype that it multiplies fast.

A CPU with AVX512-BF16 or AMX runs bf16 twice as fast as fp32, or faster (docs/training.md). One without unpacks every
product, in either 16-bit format, and is faster in fp32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["auto_dtype", "cpu_dtype", "stored_dtype", "why"]

_FAST = {"avx512_bf16", "amx_bf16"}  # as Linux calls them


def auto_dtype(config: Any) -> torch.dtype | None:
    """The dtype in which `dtype: auto` loads a base; None where its config does not say one: that of its tensors."""
    return cpu_dtype(config) or stored_dtype(config)


def cpu_dtype(config: Any) -> torch.dtype | None:
    """What a CPU runs a base in that is stored in 16 bits; None for other bases, and where there is an accelerator."""
    packed = getattr(config, "quantization_config", None) is not None  # whose kernels want what it was packed for
    if stored_dtype(config) not in (torch.float16, torch.bfloat16) or packed or torch.accelerator.is_available():
        return None
    return torch.bfloat16 if _fast_bf16() else torch.float32


def why(dtype: torch.dtype) -> str:
    """The reason for what `cpu_dtype` says."""
    return "which this CPU multiplies fast" if dtype == torch.bfloat16 else "for this CPU multiplies 16 bits slowly"


def stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype a base is stored in, as its config says it; None where it does not."""
    stored = getattr(config, "dtype", None) or config.get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) else None


@cache
def _fast_bf16() -> bool:
    try:
        return bool(_FAST & set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()))
    except OSError:  # not Linux
        return False
