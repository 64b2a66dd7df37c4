"""An expert made by hand, and edits of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from transformer2.errors import ExpertError
from transformer2.experts import Expert, read_expert

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.10.mlp.down_proj"
GOOD_KEY = f"base_model.model.{UP}.svf_z.delta"


def expert(name: str = "math", seed: int = 0, **changes: Any) -> Expert:
    g = torch.Generator().manual_seed(seed)
    deltas = {UP: torch.randn(12, generator=g) / 10, DOWN: torch.randn(7, generator=g) / 10}
    facts = {"task": "gsm8k", "step": 40, "score": 0.75, "base": "some/base", "base_fingerprint": "aaaa:bbbb"}
    return Expert(name, None, **{**facts, "deltas": deltas, **changes})  # type: ignore[arg-type]


def edit_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def edit_weights(folder: Path, **tensors: Any) -> None:
    """Replace the tensors, with a checksum that agrees: what is wrong must be seen in the tensors."""
    save_file(tensors, folder / WEIGHTS)
    edit_config(folder, sha256=None)


def refusal(*args: Any, call: Any = read_expert, **kwargs: Any) -> str:
    with pytest.raises(ExpertError) as e:
        call(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)
