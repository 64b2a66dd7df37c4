"""An expert folder, and the folder of a base it could be of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_folders import expert
from transformers import AutoModelForCausalLM, LlamaConfig

from transformer2.experts import save_expert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_expert(expert(), tmp_path / "math")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=40
    )
    folder = tmp_path_factory.mktemp("experts") / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
