"""PEFT's surface: several adapters, merging, mixing, saving, loading, quantised bases."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from unittest.mock import Mock

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from svf_families import build, build_int8, oracle, prompt, randomize, svd_weight

from transformer2 import SVFConfig, set_form
from transformer2.errors import BasisError, ConfigError, ExpertError, UserError
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.format import config_sha256
from transformer2.svf.layer import RenormScale, SVFLayer, probe_weight, svf_layers
from transformer2.svf.modes import merged_for_rollout

ALL = SVFConfig(target_modules="all-linear")


@pytest.fixture
def model():
    model = get_peft_model(build("qwen2"), copy.deepcopy(ALL))
    randomize(model)
    return model


def logits(model):
    with torch.no_grad():
        return model(prompt()).logits


# Several adapters


def test_adapters_switch_add_up_and_go(model):
    with model.disable_adapter():
        base = logits(model)
    first = logits(model)
    model.add_adapter("second", SVFConfig(target_modules="mlp", layers_to_transform=1))
    randomize(model, "second", seed=9)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), oracle("qwen2", model, "second")(prompt()).logits, rtol=2e-4, atol=2e-4)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "both")
    model.set_adapter("both")
    torch.testing.assert_close(logits(model), both, rtol=1e-5, atol=1e-5)
    model.set_adapter("default")
    for name in ("second", "both"):
        model.delete_adapter(name)
    assert torch.equal(logits(model), first)
    assert {name for _, layer in svf_layers(model) for name in layer.svf_z} == {"default"}
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.merge_adapter(["default", "nope"]),
        lambda model: model.merge_and_unload(adapter_names=["nope"]),
        lambda model: model.base_model.set_adapter(["default", "nope"]),
    ],
)
def test_names_of_no_adapter_are_not_passed_over(model, use):
    with pytest.raises(ConfigError, match=r"non-existing adapter.*nope; loaded: default"):
        use(model)
    assert model.active_adapters == ["default"] and not any(layer.merged for _, layer in svf_layers(model))


def test_adapters_share_one_basis(model):
    before = {id(layer.svf_basis) for _, layer in svf_layers(model)}
    model.add_adapter("second", copy.deepcopy(ALL))
    assert {id(layer.svf_basis) for _, layer in svf_layers(model)} == before


def test_disabling_leaves_requires_grad_as_it_was(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with model.disable_adapter():
        pass
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["half", "a.b", "type", ""])
def test_impossible_adapter_names(model, name):
    for add in (
        lambda: model.add_adapter(name, copy.deepcopy(ALL)),
        lambda: model.add_weighted_adapter(["default"], [1.0], name),
    ):
        with pytest.raises(ConfigError, match="choose another"):
            add()
        assert list(model.peft_config) == ["default"]


def test_an_injection_that_fails_leaves_nothing(model, monkeypatch):
    def names():
        return [name for name, _ in model.named_modules()]

    model.add_weighted_adapter(["default"], [0.5], "half_mlp")
    before, first = names(), logits(model)
    base, plain = build("gpt2"), [name for name, _ in build("gpt2").named_modules()]
    made = SVFLayer.update_layer
    for inject in (
        lambda: model.add_weighted_adapter(["default"], [1.0], "b"),
        lambda: model.add_adapter("b", copy.deepcopy(ALL)),
        lambda: get_peft_model(base, copy.deepcopy(ALL)),
    ):
        fail = Mock(side_effect=[None, None, BasisError("the third")])
        monkeypatch.setattr(SVFLayer, "update_layer", lambda *args, fail=fail: (fail(), made(*args)))
        with pytest.raises(BasisError):
            inject()
        assert list(model.peft_config) == ["default", "half_mlp"] and names() == before
    assert torch.equal(logits(model), first) and [name for name, _ in base.named_modules()] == plain


@pytest.mark.parametrize("mix", ["delta", "normalised", "raw"])
def test_add_weighted_adapter(model, mix):
    model.add_adapter("b", copy.deepcopy(ALL))
    randomize(model, "b", seed=9)
    model.add_weighted_adapter(["default", "b"], [0.5, 1.5], "mix", mix=mix, combination_type="linear")
    for _, layer in svf_layers(model):
        a, b, mixed = (layer.delta([name]) for name in ("default", "b", "mix"))
        expected = {
            "delta": 0.5 * a + 1.5 * b,
            "normalised": 0.25 * a + 0.75 * b,
            "raw": 0.5 * (1 + a) + 1.5 * (1 + b) - 1,
        }
        torch.testing.assert_close(mixed, expected[mix])
    assert model.active_adapter == "default"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["nope"], [1.0], "x"), "unknown adapter 'nope'"),
        ((["default"], [1.0], "default"), "adapter 'default' exists"),
        ((["default"], [1.0, 2.0], "x"), "2 weights for 1"),
        ((["default"], [float("inf")], "x"), "from -100 to 100"),
        ((["default"], [0.0], "x", "normalised"), "sum to zero"),
        ((["default"], [1.0], "x", "delta", "svd"), "combination_type='svd' is LoRA's"),
        ((["default"], [0.0], "x", "mean"), "mix='mean'"),
    ],
)
def test_add_weighted_adapter_refuses(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.peft_config) == ["default"]


def test_training_moves_z_and_nothing_else(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2, weight_decay=0.0)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(prompt(), labels=prompt()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".svf_z." in name}


@pytest.mark.parametrize("names", [["narrow"], ["narrow", "wide"], ["wide", "narrow"]], ids=" ".join)
def test_without_the_active_adapter_every_layer_runs_the_same_other_one(model, names):
    for seed, name in enumerate(names):
        config = SVFConfig(target_modules=["up_proj"]) if name == "narrow" else copy.deepcopy(ALL)
        model.add_adapter(name, config)
        randomize(model, name, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says which one each layer would have taken
        model.delete_adapter("default")
    after, active = logits(model), model.active_adapter
    model.set_adapter(active)
    assert active in names and torch.equal(logits(model), after)


# Merging


def test_merge_refuses_non_finite_weights_and_restores_every_layer(model):
    *_, (_, last) = svf_layers(model)
    with torch.no_grad():
        last.svf_z["default"].delta[0] = float("inf")
    weights = {name: p.clone() for name, p in model.named_parameters() if ".svf_" not in name}
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: merged_for_rollout(model).__enter__()):
        with pytest.raises(UserError, match="non-finite"):
            merge()
        now = dict(model.named_parameters())
        assert all(torch.equal(now[name], weight) for name, weight in weights.items())
        assert not any(layer.merged for _, layer in svf_layers(model))


def test_nothing_is_loaded_over_an_adapter_that_is_merged(model):
    state = {key: 2 * value for key, value in get_peft_model_state_dict(model).items()}
    before = logits(model)
    model.merge_adapter()
    with pytest.raises(UserError, match=r"'default' is merged into the weights; call unmerge_adapter\(\) first"):
        set_peft_model_state_dict(model, state)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)


def test_a_base_that_is_off_loaded_is_refused():
    base = build("qwen2")
    base.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    base.model.layers[1].to("meta")
    with pytest.raises(ConfigError, match=r"device_map off-loads model\.layers\.1\."):
        get_peft_model(base, SVFConfig(target_modules="mlp"))
    get_peft_model(base, SVFConfig(target_modules="mlp", layers_to_transform=0))


def test_bf16_merge_and_unmerge_keep_every_bit():
    model = get_peft_model(build("llama").bfloat16(), copy.deepcopy(ALL))
    randomize(model, std=1.0)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    model.merge_adapter()
    assert any(not torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(p.dtype == weights[name].dtype for name, p in model.named_parameters())
    model.unmerge_adapter()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_merged_model_that_is_cast_is_unmerged_in_the_new_dtype(family):
    model = get_peft_model(build(family), copy.deepcopy(ALL))
    randomize(model)
    expected = {name: p.bfloat16() for name, p in model.named_parameters()}
    model.merge_adapter()
    model.bfloat16()
    assert all(layer.weight_mn().dtype == torch.bfloat16 for _, layer in svf_layers(model))
    model.unmerge_adapter()
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_merging_two_adapters_one_after_the_other(model):
    model.add_adapter("b", copy.deepcopy(ALL))
    randomize(model, "b", seed=9)
    model.base_model.set_adapter(["default", "b"])
    expected = logits(model)
    model.set_adapter("default")
    model.merge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter(["b"])
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("b")


def test_disabled_adapters_are_exact_under_merged_weights(model):
    with model.disable_adapter():
        base = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("form", ["delta", "factored"])
def test_rollout_context_merges_bypasses_and_restores(model, form):
    set_form(model, form)
    before, weights = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="boom"), merged_for_rollout(model) as merged:
        assert merged
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
        with pytest.raises(UserError, match="inside merged_for_rollout"):
            model.base_model.disable_adapter_layers()
        raise RuntimeError("boom")
    assert torch.equal(logits(model), before)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert not any("forward" in layer.__dict__ for _, layer in svf_layers(model))


def test_rollout_context_leaves_a_disabled_policy_alone(model):
    with model.disable_adapter():
        base = logits(model)
        with merged_for_rollout(model) as merged:
            assert not merged
            assert torch.equal(logits(model), base)


# Forms


def test_set_form_names_its_errors(model):
    with pytest.raises(ConfigError, match="form='fast'"):
        set_form(model, "fast")
    with pytest.raises(ConfigError, match="no SVF layers"):
        set_form(build("llama"), "delta")
    for gone in ("auto", "merged"):
        with pytest.raises(ConfigError, match=f"form='{gone}' is no longer a form of training; leave it out"):
            set_form(model, gone)
    assert {layer.form for _, layer in svf_layers(model)} == {"delta"}


def test_forms_work_under_autocast(model):
    expected = logits(model)
    for form in ("delta", "factored"):
        set_form(model, form)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(prompt(), labels=prompt()).loss
            out = logits(model)
        loss.backward()
        assert float((out - expected).norm() / expected.norm()) < 0.05
        assert all(layer.svf_z["default"].delta.grad.dtype == torch.float32 for _, layer in svf_layers(model))


def test_copies_are_independent(model):
    twin = copy.deepcopy(model)
    before = logits(model)
    randomize(twin, seed=11)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(twin), before, atol=1e-3)


def test_gradient_checkpointing(model):
    model(prompt(), labels=prompt()).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(prompt(), labels=prompt()).loss.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient)


# The reference code's parametrisation


def test_sigmoid_renorm_starts_where_the_paper_says():
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), SVFConfig(parametrization="sigmoid_renorm"))
    z = torch.cat([1 + layer.delta(["default"]) for _, layer in svf_layers(model)])
    assert abs(float(z.detach().mean()) - 1) < 1e-3
    assert 0.003 < float(z.detach().std()) < 0.007


def test_sigmoid_renorm_saves_effective_z_and_resumes(tmp_path):
    model = get_peft_model(build("llama"), SVFConfig(parametrization="sigmoid_renorm"))
    randomize(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == {f"{name}.svf_z.delta" for name, _ in svf_layers(model)}
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    config = loaded.peft_config["default"]
    assert (config.parametrization, config.trained_parametrization) == ("direct", "sigmoid_renorm")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    # A trainer that resumes in place: effective z - 1 into logits.
    fresh = get_peft_model(build("llama"), SVFConfig(parametrization="sigmoid_renorm"))
    set_peft_model_state_dict(fresh, saved)
    assert all(isinstance(layer.svf_z["default"], RenormScale) for _, layer in svf_layers(fresh))
    torch.testing.assert_close(logits(fresh), expected, rtol=1e-5, atol=1e-5)


def test_a_z_that_sigmoid_renorm_cannot_hold_is_refused(model):
    saved = get_peft_model_state_dict(model)
    other = get_peft_model(build("qwen2"), SVFConfig(target_modules="all-linear", parametrization="sigmoid_renorm"))
    with pytest.raises(ExpertError, match="parametrization='direct'"):
        set_peft_model_state_dict(other, saved)


# Files


def test_expert_folder(model, tmp_path):
    config = model.peft_config["default"]
    config.task, config.step, config.score = "gsm8k", 40, 0.5
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert saved["sha256"] == hashlib.sha256(weights).hexdigest()
    assert saved["base_fingerprint"] == fingerprint(build("qwen2"))
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: peft" in card
    for fact in ("gsm8k", "| step | 40 |", "50.0 %", saved["sha256"], "import transformer2"):
        assert fact in card
    assert "More Information Needed" not in card
    # A second save refreshes our section and keeps what a person wrote.
    (tmp_path / "README.md").write_text(card + "\nWritten by hand.\n")
    config.step = 80
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| step | 80 |" in card
    assert "| step | 40 |" not in card
    assert "Written by hand." in card


def test_the_fingerprint_is_that_of_the_base_it_was_trained_on(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    other = PeftModel.from_pretrained(build("qwen2", seed=1), tmp_path / "a")
    other.save_pretrained(tmp_path / "loaded")
    trained = PeftModel.from_pretrained(build("qwen2", seed=1), tmp_path / "a", is_trainable=True)
    trained.save_pretrained(tmp_path / "trained")
    stamps = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())["base_fingerprint"]
        for name in ("a", "loaded", "trained")
    ]
    assert stamps[0] == stamps[1] == fingerprint(build("qwen2"))
    assert stamps[2] == fingerprint(build("qwen2", seed=1)) != stamps[0]
    model.merge_adapter()
    assert fingerprint(model) == stamps[0]
    with pytest.warns(UserWarning, match="another architecture"), pytest.raises(ExpertError, match="missing"):
        PeftModel.from_pretrained(build("phi3"), tmp_path / "a")


@pytest.fixture
def two_experts(model, tmp_path):
    """Folders of two experts of one base, which say other things of themselves."""
    config, folders = model.peft_config["default"], [tmp_path / "math", tmp_path / "code"]
    for i, folder in enumerate(folders, 1):
        randomize(model, seed=10 + i)
        config.task, config.step, config.score = folder.name, i, i / 4
        model.save_pretrained(folder)
    return folders


def said(config):
    return config.task, config.step, config.score


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_that_is_loaded_over_says_what_the_new_one_says(two_experts, model, tmp_path, trainable):
    first, second = two_experts
    loaded = PeftModel.from_pretrained(build("qwen2"), first, is_trainable=trainable)
    loaded.save_pretrained(tmp_path / "before")
    loaded.load_adapter(second, "default")
    config = loaded.peft_config["default"]
    assert not config._svf_stamped  # what it is trained into from here on is of this base
    assert said(config) == ("code", 2, 0.5) and config.inference_mode is not trainable
    assert config.sha256 == hashlib.sha256((second / "adapter_model.safetensors").read_bytes()).hexdigest()
    loaded.save_pretrained(tmp_path / "again")
    assert said(PeftConfig.from_pretrained(tmp_path / "again")) == ("code", 2, 0.5)
    assert torch.equal(logits(loaded), logits(model))


def test_a_damaged_expert_is_not_loaded_over_another(two_experts):
    first, second = two_experts
    loaded = PeftModel.from_pretrained(build("qwen2"), first)
    before, file = logits(loaded), second / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ExpertError, match="sha256"):
        loaded.load_adapter(second, "default")
    assert said(loaded.peft_config["default"]) == ("math", 1, 0.25) and torch.equal(logits(loaded), before)


@pytest.mark.parametrize("start", ["loaded", "loaded over", "its config alone"])
def test_step_and_score_are_not_those_of_a_z_that_was_trained_since(two_experts, tmp_path, start):
    first, second = two_experts
    if start == "its config alone":
        config = PeftConfig.from_pretrained(first)
        config.inference_mode = False
        trained = get_peft_model(build("qwen2"), config)
    else:
        trained = PeftModel.from_pretrained(build("qwen2"), first, is_trainable=True)
        trained.save_pretrained(tmp_path / "as it was")
        assert said(PeftConfig.from_pretrained(tmp_path / "as it was")) == ("math", 1, 0.25)
    if start == "loaded over":
        trained.load_adapter(second, "default")
    randomize(trained, seed=20)
    trained.save_pretrained(tmp_path / "unknown")
    assert said(PeftConfig.from_pretrained(tmp_path / "unknown"))[1:] == (None, None)
    config = trained.peft_config["default"]
    config.step, config.score = 3, 0.75
    trained.save_pretrained(tmp_path / "known")
    assert said(PeftConfig.from_pretrained(tmp_path / "known"))[1:] == (3, 0.75)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, key: tensors.pop(key), "1 missing"),
        (lambda tensors, key: tensors.update({key.replace("layers.0", "layers.9"): tensors[key].clone()}), "1 unknown"),
        (lambda tensors, key: tensors.update({key: tensors[key][:-1].clone()}), r"has shape \(31,\)"),
        (lambda tensors, key: tensors.update({key: tensors[key].int()}), "torch.int32"),
        (lambda tensors, key: tensors[key].fill_(float("nan")), "non-finite"),
    ],
)
def test_damaged_or_foreign_files_are_refused(model, tmp_path, damage, message):
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors, "base_model.model.model.layers.0.mlp.up_proj.svf_z.delta")
    save_file(tensors, file)
    with pytest.raises(ExpertError, match="sha256"):
        PeftModel.from_pretrained(build("qwen2"), tmp_path)
    # Checksums that agree: what is wrong must be seen in the tensors.
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    saved["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    saved["config_sha256"] = config_sha256(saved)
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises(ExpertError, match=message) as error:
        PeftModel.from_pretrained(build("qwen2"), tmp_path)
    assert "\n" not in str(error.value)


def test_saving_from_a_gathered_state_dict(model, tmp_path):
    """Trainers pass a state dict of their own; one with trainables only is enough."""
    gathered = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path, state_dict=gathered)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == {n.replace(".default", "") for n in gathered}


def test_modules_to_save_travel_with_z(tmp_path):
    model = get_peft_model(build("llama"), SVFConfig(modules_to_save=["norm"]))
    randomize(model)
    with torch.no_grad():
        model.get_base_model().model.norm.modules_to_save["default"].weight.add_(0.5)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build("llama"), tmp_path)), expected)


def test_bases_come_from_the_cache_folder(tmp_path, monkeypatch):
    options = dict(target_modules="mlp", basis_cache=str(tmp_path))
    first = get_peft_model(build("llama"), SVFConfig(**options))
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 6
    monkeypatch.setattr("transformer2.svf.cache.compute_basis", None)
    second = get_peft_model(build("llama"), SVFConfig(**options))
    for (_, a), (_, b) in zip(svf_layers(first), svf_layers(second), strict=True):
        assert torch.equal(a.svf_basis, b.svf_basis)


# Quantised bases


def test_quantised_base_trains_saves_and_loads(model, tmp_path):
    base = build_int8("qwen2")
    expected_base = logits(base)
    on_int8 = get_peft_model(base, copy.deepcopy(ALL))
    assert len(svf_layers(on_int8)) == 14
    assert torch.equal(logits(on_int8), expected_base)
    on_int8(prompt(), labels=prompt()).loss.backward()
    assert all(float(layer.svf_z["default"].delta.grad.abs().max()) > 0 for _, layer in svf_layers(on_int8))
    randomize(on_int8)
    for _, layer in svf_layers(on_int8):
        composed = svd_weight(probe_weight(layer.base_layer), layer.delta(["default"]), transposed=False)
        x = torch.randn(5, layer.in_features)
        bias = layer.base_layer.bias
        expected = x.double() @ composed.T + (0 if bias is None else bias.double())
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    on_int8.save_pretrained(tmp_path / "int8")
    again = PeftModel.from_pretrained(build_int8("qwen2"), tmp_path / "int8")
    assert torch.equal(logits(again), logits(on_int8))
    # An expert of the dense base runs on the quantised one.
    model.save_pretrained(tmp_path / "dense")
    loaded = PeftModel.from_pretrained(build_int8("qwen2"), tmp_path / "dense")
    assert float((logits(loaded) - logits(model)).norm() / logits(model).norm()) < 0.05


def test_torchs_dynamic_int8_runs_as_delta_only():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = torch.ao.quantization.quantize_dynamic(build("qwen2"), {torch.nn.Linear}, dtype=torch.qint8)
    expected_base = logits(base)
    model = get_peft_model(base, copy.deepcopy(ALL))
    assert len(svf_layers(model)) == 14
    assert torch.equal(logits(model), expected_base)
    randomize(model, std=0.1)
    dense = get_peft_model(build("qwen2"), copy.deepcopy(ALL))
    randomize(dense, std=0.1)
    expected = logits(model)
    assert float((expected - logits(dense)).norm() / logits(dense).norm()) < 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model), expected_base)
    with merged_for_rollout(model) as merged:
        assert not merged
        assert torch.equal(logits(model), expected)
    with pytest.raises(ConfigError, match="quantised"):
        set_form(model, "factored")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ConfigError, match="quantised"):
            merge()
    assert torch.equal(logits(model), expected)


def test_unknown_linear_layers_are_black_boxes():
    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * torch.nn.functional.linear(x, self.weight) + self.bias

    net = torch.nn.Sequential(Scaled(4, 6), Scaled(6, 3))
    x = torch.randn(5, 4)
    expected = net(x)
    model = get_peft_model(net, SVFConfig(target_modules=["0", "1"]))
    assert torch.equal(model(x), expected)
    with pytest.raises(ConfigError, match="Scaled is quantised, sharded or opaque"):
        set_form(model, "factored")
    layer = model.get_base_model()[0]
    assert isinstance(layer, SVFLayer)
    with torch.no_grad():
        layer.svf_z["default"].delta.fill_(0.5)
    torch.testing.assert_close(layer(x) - layer.base_layer.bias, 1.5 * (layer.base_layer(x) - layer.base_layer.bias))
