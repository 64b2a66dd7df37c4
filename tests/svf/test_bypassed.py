"""Weights that more than one place uses: tied ones, layers under several names, layers that a model goes past."""

import pytest
import torch
from causal_families import build as build_family
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from svf_families import build, prompt, randomize
from torch import nn
from transformers import AutoModelForCausalLM

from transformer2 import SVFConfig
from transformer2.errors import ConfigError
from transformer2.export import export_merged
from transformer2.policy import build_policy
from transformer2.svf.layer import svf_layers
from transformer2.svf.modes import merged_for_rollout
from transformer2.svf.targets import find_targets


def tie_parameters(model):
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight


def tie_with_an_untuned_layer(model):
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.gate_proj.weight


def one_layer_under_two_names(model):
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj = first.up_proj


def one_layer_twice_in_one_module(model):
    mlp = model.model.layers[0].mlp
    mlp.gate_proj = mlp.up_proj


def one_block_under_two_names(model):
    first, second = model.model.layers
    second.mlp = first.mlp


SHARED = [
    tie_parameters,
    tie_with_an_untuned_layer,
    one_layer_under_two_names,
    one_layer_twice_in_one_module,
    one_block_under_two_names,
]


def shared(share):
    model = build("llama")
    share(model)
    return model.requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("share", SHARED)
def test_shared_weights_stay_what_they_are(share, tmp_path):
    model = shared(share)
    before = model(prompt()).logits
    values = {name: (id(p), p.clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    policy = get_peft_model(model, SVFConfig(target_modules=["up_proj"]))
    randomize(policy)
    expected = policy(prompt()).logits
    for _ in range(3):
        with merged_for_rollout(policy) as merged:
            assert merged
            torch.testing.assert_close(policy(prompt()).logits, expected, rtol=1e-4, atol=1e-4)
        policy.merge_adapter()
        torch.testing.assert_close(policy(prompt()).logits, expected, rtol=1e-4, atol=1e-4)
        policy.unmerge_adapter()
    with policy.disable_adapter():
        assert torch.equal(policy(prompt()).logits, before)
    now = {
        name.replace(".base_layer", ""): p
        for name, p in policy.get_base_model().named_parameters(remove_duplicate=False)
        if ".svf_" not in name
    }
    assert {name: id(p) for name, p in now.items()} == {name: i for name, (i, _) in values.items()}
    assert all(torch.equal(p, values[name][1]) for name, p in now.items())

    policy.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(shared(share), tmp_path)
    assert torch.equal(again(prompt()).logits, expected)
    assert len(svf_layers(again)) == len(svf_layers(policy))
    plain = again.unload()
    assert torch.equal(plain(prompt()).logits, before)
    merged = policy.merge_and_unload()
    torch.testing.assert_close(merged(prompt()).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any("svf" in name for name, _ in merged.named_modules())


@torch.no_grad()
@pytest.mark.parametrize("family", ["zamba2", "zamba"])
def test_a_family_with_shared_blocks_is_exported_as_it_runs(family, tmp_path):
    from fakes import byte_tokenizer

    policy = build_policy(build_family(family), {"target_modules": "all-linear"})
    randomize(policy, std=0.2)
    expected = policy(prompt()).logits
    try:
        folder = export_merged(policy, byte_tokenizer(), tmp_path / "out")
    except ConfigError as e:
        assert "share" in str(e)
        assert not (tmp_path / "out").exists()
    else:
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(loaded(prompt()).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(policy(prompt()).logits, expected)


# Layers that a model goes past


class ReadsItsWeight(nn.Module):
    """Multiplies by the weight of a layer that it never calls."""

    def __init__(self, inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 32), nn.Linear(32, 32)
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + torch.nn.functional.linear(self.fc1(x), self.fc2.weight, self.fc2.bias)


class HoldsItElsewhere(ReadsItsWeight):
    """Calls a layer that it keeps in a list of its own."""

    def __init__(self, inner):
        super().__init__(inner)
        self._held = [self.fc2]

    def forward(self, x):
        return self.inner(x) + self._held[0](self.fc1(x))


class LooksAtItsType(ReadsItsWeight):
    """As many models do: harmless."""

    def forward(self, x):
        return self.inner(x) + self.fc2(self.fc1(x).to(self.fc2.weight.dtype))


class NeverUsesIt(ReadsItsWeight):
    """An expert that no token goes to."""

    def forward(self, x):
        return self.inner(x) + self.fc1(x)


def with_mlp(kind):
    torch.manual_seed(0)
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp = kind(layer.mlp)
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", [ReadsItsWeight, HoldsItElsewhere])
@pytest.mark.parametrize("call", ["forward", "generate", "commands"])
def test_a_layer_that_the_model_goes_past_is_refused_by_name(kind, call, tmp_path):
    policy = get_peft_model(with_mlp(kind), SVFConfig(target_modules=["fc1", "fc2", "up_proj"]))
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.fc2 .*2 such layers.*exclude_modules=\['fc2'\]") as refusal:
        if call == "commands":
            from transformer2.policy import check_halves, lm_head

            check_halves(policy, lm_head(policy))
        elif call == "forward":
            policy(prompt())
        else:
            policy.generate(prompt(), max_new_tokens=2)
    assert "\n" not in str(refusal.value)
    assert not any(layer._forward_pre_hooks for _, layer in svf_layers(policy))
    kept = get_peft_model(with_mlp(kind), SVFConfig(target_modules=["fc1", "fc2"], exclude_modules=["fc2"]))
    kept(prompt())
    assert len(svf_layers(kept)) == 2


@torch.no_grad()
@pytest.mark.parametrize("kind", [LooksAtItsType, NeverUsesIt])
def test_others_are_let_be(kind):
    policy = get_peft_model(with_mlp(kind), SVFConfig(target_modules=["fc1", "fc2"]))
    policy(prompt())
    assert len(svf_layers(policy)) == 4


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba"])
def test_roles_leave_dt_proj_out_and_its_name_is_refused(family):
    model = build_family(family)
    assert any(name.endswith("dt_proj") for name, _ in model.named_modules())
    names = find_targets(model, SVFConfig(target_modules=r".*\.\d+\..*(in|out|x)_proj"))
    roles = find_targets(model, SVFConfig(target_modules="attention" if family == "jamba" else "all-linear"))
    assert names and roles and not any(name.endswith("dt_proj") for name in roles)
    policy = get_peft_model(model, SVFConfig(target_modules=["in_proj", "dt_proj"]))
    with torch.no_grad(), pytest.raises(ConfigError, match="dt_proj"):
        policy(prompt())


def test_the_output_projection_of_torch_s_own_attention_is_no_target():
    model = build("llama")
    model.model.layers[0].extra = nn.MultiheadAttention(32, 4)
    assert not any("out_proj" in name for name in find_targets(model, SVFConfig(target_modules="all-linear")))
    with pytest.raises(ConfigError, match="out_proj"):
        find_targets(model, SVFConfig(target_modules=["out_proj"]))


# Hot swapping


@torch.no_grad()
def test_an_expert_is_swapped_for_another_in_place(tmp_path):
    folders, logits = {}, {}
    for seed, name in enumerate(("math", "code")):
        policy = get_peft_model(build("llama"), SVFConfig(target_modules="all-linear" if name == "math" else "mlp"))
        randomize(policy, seed=seed)
        logits[name] = policy(prompt()).logits
        policy.save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    policy = PeftModel.from_pretrained(build("llama"), folders["math"])
    parameters = {name: id(p) for name, p in policy.named_parameters()}
    hotswap_adapter(policy, folders["code"], adapter_name="default", torch_device="cpu")
    assert torch.equal(policy(prompt()).logits, logits["code"])
    hotswap_adapter(policy, folders["math"], adapter_name="default", torch_device="cpu")
    assert torch.equal(policy(prompt()).logits, logits["math"])
    assert {name: id(p) for name, p in policy.named_parameters()} == parameters

    renorm = get_peft_model(build("llama"), SVFConfig(target_modules="mlp", parametrization="sigmoid_renorm"))
    with pytest.raises(ValueError, match="parametrization"):
        hotswap_adapter(renorm, folders["code"], adapter_name="default", torch_device="cpu")
