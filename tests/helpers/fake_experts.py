"""Expert folders for a small model: random z, far enough from 1 to change what it says."""

from pathlib import Path

import torch

from transformer2.experts import Expert, save_expert
from transformer2.policy import build_policy, load_base
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.layer import svf_layers

ALL = {"peft_type": "SVF", "target_modules": "all-linear"}


def make_experts(folder: Path, base: str, names=("math", "code", "reasoning"), std: float = 0.5) -> list[str]:
    """Folders of random experts, one per name."""
    policy = build_policy(load_base(base, "float32"), ALL)
    mark = fingerprint(policy)
    folders = []
    for k, name in enumerate(names):
        generator = torch.Generator().manual_seed(k)
        deltas = {
            path.removeprefix("base_model.model."): std
            * torch.randn(min(layer.in_features, layer.out_features), generator=generator)
            for path, layer in svf_layers(policy)
        }
        expert = Expert(name, None, "first_letter", k, 0.5, base, mark, deltas)
        folders.append(str(save_expert(expert, folder / name)))
    return folders
