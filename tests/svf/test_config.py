"""What SVFConfig accepts, refuses and saves; which modules it reaches."""

from __future__ import annotations

import json

import pytest
import transformers as tf
from peft import LoraConfig, PeftConfig, get_peft_model
from svf_families import build
from torch import nn

from transformer2 import SVFConfig
from transformer2.errors import ConfigError
from transformer2.svf.layer import svf_layers
from transformer2.svf.targets import role_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "dense"}, "form='dense'.*delta"),
        ({"parametrization": "sigmoid"}, "parametrization='sigmoid'.*sigmoid_renorm"),
        ({"form": "merged"}, "form='merged' is no longer a form of training; leave it out"),
        ({"form": "auto"}, "form='auto' is no longer a form of training; leave it out"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ["q_proj", 3]}, "target_modules="),
        ({"target_modules": "("}, "not a regular expression"),
        ({"layers_to_transform": -1}, "layers_to_transform=-1"),
        ({"layers_to_transform": []}, r"layers_to_transform=\[\]"),
        ({"layers_pattern": "layers"}, "no effect without layers_to_transform"),
    ],
)
def test_bad_values_are_named_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        SVFConfig(**options)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


def test_a_saved_config_reads_back_and_names_no_folder(tmp_path):
    config = SVFConfig(
        target_modules={"up_proj", "down_proj"}, basis_cache="/somewhere", task="gsm8k", step=3, score=0.5
    )
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == ["down_proj", "up_proj"]
    assert saved["peft_type"] == "SVF"
    assert saved["basis_cache"] is None
    assert saved["sha256"] is None
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SVFConfig)
    assert (loaded.task, loaded.step, loaded.score) == ("gsm8k", 3, 0.5)
    assert "gsm8k" in (tmp_path / "README.md").read_text()


def test_one_module_to_save_is_a_list_of_one():
    assert SVFConfig(modules_to_save="lm_head").modules_to_save == ["lm_head"]


def tuned(target, family="llama", **options):
    model = get_peft_model(build(family), SVFConfig(target_modules=target, **options))
    return [name.removeprefix("base_model.model.model.") for name, _ in svf_layers(model)]


@pytest.mark.parametrize("container", [list, set, tuple])
def test_names_as_list_set_tuple(container):
    assert tuned(container(["up_proj", "q_proj"]), layers_to_transform=1) == [
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.up_proj",
    ]


def test_regex_full_path_exclusion_and_roles_in_a_list():
    assert tuned(r".*\.0\.mlp\.(up|gate)_proj") == ["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"]
    assert tuned(["model.layers.1.mlp.up_proj"]) == ["layers.1.mlp.up_proj"]
    assert tuned("mlp", exclude_modules=["down_proj"], layers_to_transform=[0]) == [
        "layers.0.mlp.gate_proj",
        "layers.0.mlp.up_proj",
    ]
    assert len(tuned("mlp", exclude_modules=r".*\.0\..*")) == 3
    assert len(tuned(["mlp", "o_proj"])) == 8


def test_layers_are_counted_in_the_named_module_list():
    assert len(tuned("all-linear", layers_to_transform=0, layers_pattern="layers")) == 7
    with pytest.raises(ConfigError, match=r"layers_to_transform=\[7\]"):
        tuned("mlp", layers_to_transform=[7])
    with pytest.raises(ConfigError, match="layer 7 of layers_to_transform is none of this model's"):
        tuned("mlp", layers_to_transform=[0, 7])
    with pytest.raises(ConfigError, match="matches no linear layer"):
        tuned("mlp", layers_to_transform=0, layers_pattern="blocks")


def test_a_typo_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'up_proj'"):
        tuned(["up_prj"])
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        tuned("atention")
    mixer = nn.ModuleList([nn.ModuleDict({"mixer": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})])
    with pytest.raises(ConfigError, match=r"'attention' matches no linear layer.*; linear layers here: mixer\.q_proj"):
        get_peft_model(nn.ModuleDict({"layers": mixer}), SVFConfig(target_modules="attention"))


@pytest.mark.parametrize("target", [["lm_head"], ["q_proj", "lm_head"], ".*", "lm_head", ["embed_tokens"]])
def test_the_output_head_is_refused_before_anything_is_touched(target):
    base = build("llama")
    with pytest.raises(ConfigError, match=r"lm_head|embed_tokens"):
        get_peft_model(base, SVFConfig(target_modules=target))
    assert not svf_layers(base)


def test_a_tied_head_under_another_name_is_refused_too():
    with pytest.raises(ConfigError, match="embed_out"):
        get_peft_model(build("gpt_neox"), SVFConfig(target_modules=["embed_out"]))


def test_fused_experts_are_refused_with_the_remedy():
    config = tf.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    base = tf.MixtralForCausalLM(config)
    for target in ("mlp", "all-linear"):
        with pytest.raises(ConfigError, match=r"experts.*3-D parameter.*target_modules='attention'"):
            get_peft_model(base, SVFConfig(target_modules=target))
    model = get_peft_model(base, SVFConfig(target_modules="attention"))
    assert len(svf_layers(model)) == 4


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.mlp.experts.5.w1", "mlp"),
        ("model.layers.3.mlp.gate", None),
        ("model.layers.3.mlp.shared_expert_gate", None),
        ("model.layers.3.mlp.shared_expert.gate_proj", "mlp"),
        ("model.layers.3.feed_forward.router", None),
        ("model.decoder.layers.3.fc1", "mlp"),
        ("model.decoder.layers.3.self_attn.out_proj", "attention"),
        ("transformer.h.3.self_attention.query_key_value", "attention"),
        ("transformer.h.3.attn.c_proj", "attention"),
        ("transformer.h.3.mlp.c_proj", "mlp"),
        ("transformer.h.3.attn_block.mlp.c_fc", "mlp"),
        ("model.layers.3.linear_attn.in_proj_qkvz", "attention"),
        ("model.vision_tower.encoder.layers.3.mlp.fc1", None),
        ("backbone.layers.3.mixer.in_proj", "other"),
        ("lm_head", None),
    ],
)
def test_roles_by_path(name, role):
    assert role_of(name) == role


def test_layers_of_other_tuners_are_left_alone():
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"]))
    inner = model.get_base_model()
    svf = get_peft_model(inner, SVFConfig(target_modules=["up_proj"]))
    assert {name.rsplit(".", 1)[-1] for name, _ in svf_layers(svf)} == {"up_proj"}


def test_any_linear_module_works_not_only_transformers():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = get_peft_model(net, SVFConfig(target_modules=["0", "2"]))
    assert [layer.side for _, layer in svf_layers(model)] == ["in", "out"]
