"""One set of invariants for every family and every form."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from svf_families import FAMILIES, build, oracle, prompt, randomize
from transformers.pytorch_utils import Conv1D

from transformer2 import SVFConfig, set_form
from transformer2.svf.layer import svf_layers
from transformer2.svf.modes import merged_for_rollout
from transformer2.svf.targets import role_of

families = pytest.mark.parametrize("family", FAMILIES)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_z_of_one_is_the_base_bit_for_bit(family, dtype):
    base = build(family).to(dtype)
    expected = base(prompt()).logits
    model = get_peft_model(base, SVFConfig(target_modules="all-linear"))
    assert len(svf_layers(model)) > 2
    assert torch.equal(model(prompt()).logits, expected)
    randomize(model)
    assert not torch.equal(model(prompt()).logits, expected)
    for form in ("delta", "factored"):
        set_form(model, form)
        with model.disable_adapter():
            assert torch.equal(model(prompt()).logits, expected)


@families
def test_forms_and_merging_agree_with_the_svd(family):
    base = build(family)
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = get_peft_model(base, SVFConfig(target_modules="all-linear"))
    randomize(model)
    expected = oracle(family, model)(prompt()).logits
    for form in ("delta", "factored"):
        set_form(model, form)
        torch.testing.assert_close(model(prompt()).logits, expected, rtol=2e-4, atol=2e-4)
    set_form(model, "delta")
    unmerged = model(prompt()).logits
    with merged_for_rollout(model) as merged:
        assert merged
        torch.testing.assert_close(model(prompt()).logits, expected, rtol=2e-4, atol=2e-4)
    assert torch.equal(model(prompt()).logits, unmerged)
    model.merge_adapter()
    torch.testing.assert_close(model(prompt()).logits, expected, rtol=2e-4, atol=2e-4)
    model.unmerge_adapter()
    now = {n.replace(".base_layer", ""): p for n, p in model.get_base_model().named_parameters() if ".svf_" not in n}
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)
    plain = model.merge_and_unload(safe_merge=True)
    assert not svf_layers(plain)
    torch.testing.assert_close(plain(prompt()).logits, expected, rtol=2e-4, atol=2e-4)


@families
def test_gradient_of_z_is_sigma_u_g_v_in_every_form(family):
    model = get_peft_model(build(family), SVFConfig(target_modules="all-linear"))
    randomize(model)
    reference = oracle(family, model)
    base = build(family)
    reference(prompt(), labels=prompt()).loss.backward()
    for form in ("delta", "factored"):
        set_form(model, form)
        model.zero_grad()
        model(prompt(), labels=prompt()).loss.backward()
        for name, layer in svf_layers(model):
            path = name.removeprefix("base_model.model.")
            transposed = isinstance(base.get_submodule(path), Conv1D)
            weight, gradient = base.get_submodule(path).weight.detach(), reference.get_submodule(path).weight.grad
            if transposed:
                weight, gradient = weight.T, gradient.T
            u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
            expected = sigma * ((u.T @ gradient.double()) * vh).sum(-1)
            actual = layer.svf_z["default"].delta.grad.double()
            assert (actual - expected).norm() < 2e-3 * expected.norm(), (form, path)
            assert layer.base_layer.weight.grad is None


@families
def test_roles_pick_the_same_layers_in_every_family(family):
    expected = FAMILIES[family]
    names = {}
    for role in ("mlp", "attention", "all-linear"):
        model = get_peft_model(build(family), SVFConfig(target_modules=role))
        names[role] = [name.removeprefix("base_model.model.") for name, _ in svf_layers(model)]
        assert model.peft_config["default"].target_modules == role
    assert {name.rsplit(".", 1)[-1] for name in names["mlp"]} == expected.mlp
    assert {name.rsplit(".", 1)[-1] for name in names["attention"]} == expected.attention
    assert sorted(names["mlp"] + names["attention"]) == sorted(names["all-linear"])
    assert all(role_of(name) == "mlp" for name in names["mlp"])


@families
def test_an_adapter_file_holds_z_only_and_comes_back(family, tmp_path):
    model = get_peft_model(build(family), SVFConfig(target_modules="all-linear"))
    randomize(model)
    expected = model(prompt()).logits
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == {f"{name}.svf_z.delta" for name, _ in svf_layers(model)}
    for name, layer in svf_layers(model):
        vector = saved[f"{name}.svf_z.delta"]
        assert vector.dtype == torch.float32
        assert torch.equal(vector, layer.svf_z["default"].delta)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(build(family), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded(prompt()).logits, expected)
    plain = build(family)
    plain.load_adapter(str(tmp_path))
    assert torch.equal(plain(prompt()).logits, expected)
