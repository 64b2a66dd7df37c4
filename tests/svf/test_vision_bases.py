"""Bases that take pictures: what is tuned in them, and that loaded, in files and packed they are one base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from vision_bases import FAMILIES, drawn, inputs, make_vision

from transformer2 import SVFConfig
from transformer2.errors import ConfigError
from transformer2.experts import compare_experts, load_experts, mix_folders, show_expert
from transformer2.policy import build_policy
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.decompose import decompose
from transformer2.svf.fingerprint import fingerprint, fingerprint_checkpoint
from transformer2.svf.layer import svf_layers
from transformer2.svf.targets import find_targets

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_vision(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()


def tuned(folder: Path, spread: float = 0.0, seed: int = 0, **options: Any) -> PeftModel:
    model = get_peft_model(load(folder), SVFConfig(**{"target_modules": "all-linear", **options})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in svf_layers(model):
            for parameter in layer.parameters_of("default"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


def answers(model: Any, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(folder, [drawn(1), drawn(2)])).logits


@every_family
@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("mlp", 6),
        ("attention", 8),
        ("all-linear", 14),
        (["q_proj"], 2),
        (["gate_proj", "k_proj"], 4),
        (r".*_proj", 14),
        (r".*language_model.*q_proj", 2),
    ],
)
def test_names_and_roles_mean_the_language_model(family, target, count, folders):
    names = find_targets(LocalCheckpoint(folders[family]).skeleton, SVFConfig(target_modules=target))
    assert len(names) == count and all(name.startswith("model.language_model.layers.") for name in names)
    one = SVFConfig(target_modules=target, layers_to_transform=1)
    assert find_targets(LocalCheckpoint(folders[family]).skeleton, one) == names[count // 2 :]


TOWER = {
    "llava": ["vision_tower.encoder.layers.0.self_attn.q_proj", "fc1", "linear_1", r".*vision_tower.*q_proj", r".*fc1"],
    "llava_next": ["model.vision_tower.encoder.layers.1.mlp.fc2", "multi_modal_projector.linear_2", r".*projector.*"],
    "qwen2_5_vl": ["visual.blocks.0.mlp.up_proj", "qkv", r"model\.visual\..*proj", "merger.mlp.0"],
}


@pytest.mark.parametrize(("family", "target"), [(f, target) for f in FAMILIES for target in TOWER[f]])
def test_a_tower_is_refused_by_name_with_the_remedy(family, target, folders):
    model = LocalCheckpoint(folders[family]).skeleton
    pattern = any(sign in target for sign in "*\\")
    with pytest.raises(
        ConfigError, match=r"reaches model\.(vis|multi).*only the language model.*exclude_modules='"
    ) as e:
        find_targets(model, SVFConfig(target_modules=target if pattern else [target]))
    assert "\n" not in str(e.value)
    remedy = str(e.value).partition("exclude_modules='")[2].rstrip("'")
    everything = SVFConfig(target_modules=r".*(_proj|fc\d|linear_\d|qkv|visual.*)", exclude_modules=remedy)
    assert len(find_targets(model, everything)) == 14


@every_family
@pytest.mark.parametrize(
    "adapter",
    [
        {"peft_type": "LORA", "target_modules": "all-linear"},
        {"peft_type": "LORA", "target_modules": ["q_proj", "gate_proj"], "bias": "all"},
        {"peft_type": "IA3", "target_modules": r".*(mlp|feed).*(_proj|fc2)", "feedforward_modules": r".*"},
        {"peft_type": "SVF", "target_modules": "mlp", "modules_to_save": ["multi_modal_projector", "merger"]},
    ],
    ids=["LoRA", "bias", "IA3", "SVF"],
)
def test_other_methods_leave_towers_alone_too(family, adapter, folders):
    with pytest.raises(ConfigError, match=r"adapter reaches model\.(vis|mul).*only the language model") as e:
        build_policy(load(folders[family]), adapter)
    if adapter.get("bias") or "modules_to_save" in adapter:
        return
    remedy = str(e.value).partition("exclude_modules='")[2].rstrip("'")
    policy = build_policy(load(folders[family]), {**adapter, "exclude_modules": remedy})
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all(".language_model.layers." in name for name in trained)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_and_in_files_it_is_one_base(family, dtype, folders, tmp_path):
    model, checkpoint = load(folders[family], dtype), LocalCheckpoint(folders[family], dtype)
    assert checkpoint.complete
    name = fingerprint(model)
    assert name == fingerprint_checkpoint(checkpoint)
    for target in find_targets(model, SVFConfig(target_modules="all-linear")):
        assert torch.equal(checkpoint.matrix(target), model.get_submodule(target).weight)
    policy = get_peft_model(model, SVFConfig(target_modules="mlp"))
    assert fingerprint(policy) == name
    # Heads count, though no weight's shape says how many there are.
    config = json.loads((folders[family] / "config.json").read_text())
    assert config["text_config"]["num_attention_heads"] == 4
    config["text_config"]["num_attention_heads"], config["text_config"]["head_dim"] = 2, 32
    config["text_config"]["num_key_value_heads"] = 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").symlink_to(folders[family] / "model.safetensors")
    assert fingerprint_checkpoint(LocalCheckpoint(other, dtype)).partition(":")[0] != name.partition(":")[0]


HUB = {  # how the files of the Hub name what save_pretrained names otherwise today
    "llava": ("vision_tower.", "vision_tower.vision_model."),
    "llava_next": ("vision_tower.", "vision_tower.vision_model."),
    "qwen2_5_vl": ("", ""),
}


@every_family
def test_files_of_the_hub_and_of_today_are_one_base(family, folders, tmp_path):
    old, new = HUB[family]
    weights = load_file(folders[family] / "model.safetensors")
    assert not any(key.startswith("model.language_model") for key in weights)
    hub = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in weights.items()}
    model = load(folders[family])
    plain = {"hub": hub, "today": {key: value.contiguous() for key, value in model.state_dict().items()}}
    for layout, tensors in plain.items():
        (tmp_path / layout).mkdir()
        (tmp_path / layout / "config.json").write_text((folders[family] / "config.json").read_text())
        save_file(tensors, tmp_path / layout / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint(load(tmp_path / layout)) == fingerprint(model)
        assert fingerprint_checkpoint(LocalCheckpoint(tmp_path / layout)) == fingerprint(model)


@every_family
def test_the_cache_of_the_files_serves_the_model(family, folders, tmp_path):
    done = decompose(folders[family], "all-linear", cache_dir=tmp_path, layers_to_transform=[1], progress=False)
    assert done["built"] == done["matrices"] == 7
    policy = tuned(folders[family], layers_to_transform=[1], basis_cache=str(tmp_path))
    assert policy.base_model._bases.cache.counts == {"reused": 7}


@every_family
@pytest.mark.parametrize("form", ["delta", "factored"])
def test_one_is_the_base_and_merged_is_unmerged(family, form, folders):
    base = answers(load(folders[family]), folders[family])
    if form == "delta":
        assert torch.equal(answers(tuned(folders[family]), folders[family]), base)
    policy = tuned(folders[family], 0.1, form=form)
    adapted = answers(policy, folders[family])
    assert not torch.allclose(adapted, base, atol=0.1)
    policy.merge_adapter()
    torch.testing.assert_close(answers(policy, folders[family]), adapted, rtol=1e-4, atol=1e-4)
    policy.unmerge_adapter()
    assert torch.equal(answers(policy, folders[family]), adapted)
    with policy.disable_adapter():
        torch.testing.assert_close(answers(policy, folders[family]), base, rtol=1e-4, atol=1e-4)


@every_family
def test_an_expert_comes_back_and_mixes(family, folders, tmp_path):
    experts = {name: tuned(folders[family], 0.1, seed) for seed, name in enumerate("ab")}
    for name, policy in experts.items():
        policy.save_pretrained(tmp_path / name)
    loaded = PeftModel.from_pretrained(load(folders[family]), tmp_path / "a").eval()
    assert torch.equal(answers(loaded, folders[family]), answers(experts["a"], folders[family]))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_fingerprint"] == fingerprint(load(folders[family]))
    card = (tmp_path / "a" / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained(" in card and "CausalLM" not in card
    assert re.search(r"^tuned matrices +14$", show_expert(tmp_path / "a"), re.MULTILINE)
    pair = load_experts([tmp_path / "a", tmp_path / "b"])
    assert set(compare_experts(pair).rms["a"]) >= {"mlp.gate_proj", "self_attn.q_proj", "all"}
    mix_folders([tmp_path / "a", tmp_path / "b"], [0.5, 0.25], tmp_path / "mixed")
    assert "AutoModelForImageTextToText.from_pretrained(" in (tmp_path / "mixed" / "README.md").read_text()
    mixed = PeftModel.from_pretrained(load(folders[family]), tmp_path / "mixed")
    for (_, layer), (_, a), (_, b) in zip(*map(svf_layers, (mixed, experts["a"], experts["b"])), strict=True):
        of = [one.delta(["default"]) for one in (a, b)]
        torch.testing.assert_close(layer.delta(["default"]), 0.5 * of[0] + 0.25 * of[1])
