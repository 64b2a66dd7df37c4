"""Checkpoints of the reference implementation become experts, or are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from expert_folders import refusal
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from transformer2.experts import import_reference_checkpoint, save_expert
from transformer2.svf.fingerprint import fingerprint


def test_reference_checkpoints_compose_the_reference_weights(base_folder: Path, tmp_path: Path) -> None:
    """Both layouts give the very W' of the published formula, and load through PEFT."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    weights = {k: v for k, v in base.state_dict().items() if "mlp" in k}
    params = {k: nn.Parameter((torch.randn(min(v.shape)) * 0.3 + 0.1).bfloat16()) for k, v in weights.items()}
    torch.save(params, tmp_path / "learnable_params.pt")
    torch.save(nn.ParameterDict({}).state_dict() | {
        f"learnable_params_module_list.{i}": p.detach() for i, p in enumerate(params.values())
    }, tmp_path / "policy_params.pt")  # fmt: skip

    named, positional = (
        import_reference_checkpoint(tmp_path / f"{n}_params.pt", base_folder, tmp_path / "cache", progress=False)
        for n in ("learnable", "policy")
    )
    assert named.name == "learnable_params" and named.base_fingerprint == fingerprint(base)
    assert all(torch.equal(named.deltas[m], positional.deltas[m]) for m in named.deltas)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), save_expert(named, tmp_path / "imported")
    ).merge_and_unload()
    for name, weight in weights.items():
        u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        m = torch.sigmoid(params[name].detach().double())
        expected = (u * (s * m)) @ vh * (s.sum() / (s * m).sum())
        torch.testing.assert_close(loaded.state_dict()[name].double(), expected, atol=2e-6, rtol=1e-4)


def test_strange_reference_files_are_refused(base_folder: Path, tmp_path: Path) -> None:
    def refused(content: Any) -> str:
        torch.save(content, tmp_path / "x.pt")
        return refusal(
            tmp_path / "x.pt", base_folder, tmp_path / "cache", call=import_reference_checkpoint, progress=False
        )

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/owned",)

    assert "not a plain file of tensors" in refused(Evil())
    assert not (tmp_path / "owned").exists()
    assert "holds a list" in refused([1])
    assert "mixture" in refused({"adaptive_weights": torch.zeros(2)})
    assert "1 vectors, the base model 6" in refused({"learnable_params_module_list.0": torch.zeros(32)})
    assert "'other.weight'" in refused({"other.weight": torch.zeros(32)})
    up = "model.layers.0.mlp.up_proj.weight"
    assert "not a vector" in refused({up: torch.zeros(3, 3)})
    assert "non-finite" in refused({up: torch.full((32,), float("nan"))})
    assert "the base model's weight needs (32,)" in refused({up: torch.zeros(31)})
    (tmp_path / "x.pt").write_bytes(b"PK garbage")
    assert "not a plain file" in refusal(tmp_path / "x.pt", base_folder, call=import_reference_checkpoint)
    assert "missing" in refusal(tmp_path / "y.pt", base_folder, call=import_reference_checkpoint)
