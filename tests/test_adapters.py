"""Whatever PEFT config is trained through our step is scored, and trained on, as itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, ids, make_llama
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from transformer2.adapters import expert_adapter
from transformer2.cli import main
from transformer2.errors import ConfigError, ExpertError, UserError
from transformer2.experts import seal_adapter
from transformer2.module import SVFReinforceModule
from transformer2.policy import build_policy, hidden_states, lm_head, load_base, load_expert, reference
from transformer2.svf.fingerprint import fingerprint

TARGETS = ["q_proj", "up_proj"]


def lora(**options: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "target_modules": TARGETS, **options}


def other(peft_type: str, **options: Any) -> dict[str, Any]:
    return {"peft_type": peft_type, "target_modules": TARGETS, **options}


CONFIGS = {
    "lora": lora(),
    "alpha": lora(r=8, lora_alpha=64),
    "r": lora(r=16),
    "rslora": lora(r=4, use_rslora=True, lora_alpha=32),
    "dora": lora(use_dora=True),
    "rank_pattern": lora(rank_pattern={"up_proj": 2}, alpha_pattern={"q_proj": 3}),
    "regex": lora(target_modules=r".*\.(q_proj|up_proj)", rank_pattern={r".*\.1\..*": 3}),
    "all-linear": lora(target_modules="all-linear"),
    "default targets": {"peft_type": "LORA"},
    "one layer": lora(layers_to_transform=[1], layers_pattern="layers"),
    "exclude": lora(target_modules="all-linear", exclude_modules=["down_proj"]),
    "bias": lora(bias="lora_only"),
    "every bias": lora(bias="all"),
    "gaussian": lora(init_lora_weights="gaussian"),
    "random": lora(init_lora_weights=False),
    "whole": lora(modules_to_save=["norm"]),
    "head": lora(target_modules=["q_proj", "lm_head"]),
    "dropout": lora(lora_dropout=0.5),
    "fan": lora(lora_bias=True),
    "embeddings": lora(target_modules=["embed_tokens", "q_proj"]),
    "tokens": lora(trainable_token_indices=[3, 5]),
    "ia3": other("IA3", feedforward_modules=["up_proj"]),
    "adalora": other("ADALORA", total_step=10, init_r=6),
    "loha": other("LOHA", r=4, alpha=16),
    "lokr": other("LOKR", r=4, alpha=16, decompose_both=True),
    "oft": other("OFT", oft_block_size=8),
    "boft": other("BOFT", boft_block_size=4),
    "vera": other("VERA", r=16, d_initial=0.3, projection_prng_key=3),
    "vera without projections": other("VERA", r=16, save_projection=False),
    "fourier": other("FOURIERFT", n_frequency=50, scaling=20),
    "hra": other("HRA", r=4),
    "tinylora": other("TINYLORA"),
    "tinylora tied": other("TINYLORA", r=4, u=8, weight_tying=0.5),
    "randlora": other("RANDLORA", r=4, randlora_alpha=7),
    "layer norms": {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
    "vblora": other("VBLORA", vector_length=16, num_vectors=32),
    "miss": other("MISS", r=4),
    "shira": other("SHIRA", r=4),
    "svf": {"target_modules": "all-linear"},
    "svf exclude": {"target_modules": "all-linear", "exclude_modules": ["down_proj", "q_proj"]},
    "svf regex": {"target_modules": r".*\.(q_proj|up_proj)", "exclude_modules": r".*\.0\..*"},
    "svf layers": {"target_modules": "mlp", "layers_to_transform": 1, "layers_pattern": "layers"},
    "svf renorm": {"target_modules": "mlp", "parametrization": "sigmoid_renorm"},
    "svf factored": {"target_modules": "mlp", "form": "factored"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2: it has biases, so that `bias: all` has something to train."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("adapters") / "base"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def trained(folder: Path, adapter: dict[str, Any], out: Path, std: float = 0.1) -> tuple[Any, torch.Tensor]:
    """A policy with random trained weights, saved as ExpertCheckpoint saves it; and its logits."""
    base = load_base(str(folder))
    with torch.no_grad():
        expected_base = base(ids()).logits
    policy = build_policy(base, adapter)
    hidden = hidden_states(policy, ids(), torch.ones_like(ids()))
    lm_head(policy)(hidden).log_softmax(-1)[..., 7].sum().backward()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.any()) for p in parameters), "the step reaches nothing"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
        logits = policy(ids()).logits
        assert not torch.allclose(logits, expected_base, atol=1e-3)
        with reference(policy):
            assert torch.equal(policy(ids()).logits, expected_base), "with the adapter off it is the base"
        assert torch.equal(policy(ids()).logits, logits)
    policy.peft_config["default"].base_model_name_or_path = str(folder)
    policy.save_pretrained(out, save_embedding_layers=False)
    return policy, logits


@pytest.mark.parametrize("name", CONFIGS)
def test_it_reloads_as_itself(name: str, folder: Path, tmp_path: Path) -> None:
    adapter = CONFIGS[name]
    _, logits = trained(folder, adapter, tmp_path / "expert")
    kind = adapter.get("peft_type", "SVF")
    how = {key: adapter[key] for key in ("form", "parametrization") if key in adapter}
    for given in ({}, adapter):  # nothing said; what it was trained with
        module = SVFReinforceModule(str(folder), adapter={"peft_type": kind, **how, **given} if how or given else None)
        module.expert = tmp_path / "expert"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(trained on|renamed|missing adapter).*")
            module.configure_model()
        with torch.no_grad():
            again = module.policy(ids()).logits
        if "parametrization" in adapter:
            torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(again, logits)
        assert any(p.requires_grad for p in module.policy.parameters()), "fit --expert continues from it"
    module.policy.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    saved = load_file(tmp_path / "expert" / "adapter_model.safetensors")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == saved.keys()


@pytest.mark.parametrize(
    ("adapter", "given", "key", "mine", "theirs"),
    [
        (lora(r=16), {"r": 8}, "r", "8", "16"),
        (lora(lora_alpha=64), {"peft_type": "LORA", "lora_alpha": 16}, "lora_alpha", "16", "64"),
        (lora(use_dora=True), {"use_dora": False}, "use_dora", "False", "True"),
        (lora(), {"target_modules": ["q_proj"]}, "target_modules", "['q_proj']", "['q_proj', 'up_proj']"),
        (lora(), {"target_modules": "all-linear"}, "target_modules", "all-linear", "['q_proj', 'up_proj']"),
        (lora(layers_to_transform=[1]), {"layers_to_transform": [0]}, "layers_to_transform", "[0]", "[1]"),
        (lora(), {"exclude_modules": ["q_proj"]}, "exclude_modules", "['q_proj']", "None"),
        (lora(), {"peft_type": "IA3"}, "peft_type", "IA3", "LORA"),
        (lora(), {"peft_type": "SVF", "target_modules": "mlp"}, "peft_type", "SVF", "LORA"),
        ({"target_modules": "mlp"}, {"target_modules": "all-linear"}, "target_modules", "all-linear", "mlp"),
        ({"target_modules": "mlp"}, {"layers_to_transform": 0}, "layers_to_transform", "0", "None"),
        ({"target_modules": "mlp"}, lora(), "peft_type", "LORA", "SVF"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_values(
    folder: Path, tmp_path: Path, adapter: Any, given: Any, key: str, mine: str, theirs: str
) -> None:
    build_policy(load_base(str(folder)), adapter).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ConfigError) as e:
        expert_adapter(tmp_path, given, load_base(str(folder)))
    assert "\n" not in str(e.value) and f"model.adapter.{key} is {mine}, " in str(e.value) and theirs in str(e.value)


def test_other_words_for_the_same_modules_are_none(folder: Path, tmp_path: Path) -> None:
    names = ["gate_proj", "up_proj", "down_proj"]
    for i, (adapter, given) in enumerate(
        [
            (lora(target_modules="all-linear"), {"target_modules": "all-linear"}),
            (lora(target_modules=names), {"target_modules": r".*_proj", "exclude_modules": r".*attn.*"}),
            ({"target_modules": "mlp"}, {"target_modules": names}),
            ({"target_modules": "mlp"}, {"target_modules": "mlp", "layers_to_transform": [0, 1]}),
        ]
    ):
        build_policy(load_base(str(folder)), adapter).save_pretrained(tmp_path / str(i), save_embedding_layers=False)
        expert_adapter(tmp_path / str(i), given, load_base(str(folder)))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (lora(r=0), "r"),
        (lora(target_modules=["nothing"]), "nothing"),
        (lora(init_lora_weights="pissa"), "changes the base's own weights"),
        (lora(init_lora_weights="olora"), "changes the base's own weights"),
        (lora(init_lora_weights="nonsense"), "nonsense"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "adds tokens"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "adds tokens"),
        ({"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 1}, "adds tokens"),
        (other("POLY"), "POLY"),
        (other("VERA", r="x"), "VERA"),
    ],
)
def test_what_this_trainer_cannot_train_is_one_line(folder: Path, adapter: Any, message: str) -> None:
    with pytest.raises(UserError) as e:
        build_policy(load_base(str(folder)), adapter)
    assert "\n" not in str(e.value) and message in str(e.value)


def test_svf_refuses_modules_to_save_before_the_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"modules_to_save \['norm'\]"):
        SVFReinforceModule("/no/such/base", adapter={"modules_to_save": ["norm"]})


@pytest.mark.parametrize("change", ["missing", "more", "shape", "nan", "field", "type", "hang", "json"])
def test_a_strange_lora_is_an_expert_error(
    folder: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer2.adapters._SECONDS_TO_MATCH", 1)
    policy, _ = trained(folder, lora(), tmp_path)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, saved = load_file(file), json.loads(config.read_text())
    key = next(iter(tensors))
    if change == "missing":
        del tensors[key]
    elif change == "more":
        tensors["base_model.model.x"] = torch.zeros(2)
    elif change == "shape":
        tensors[key] = tensors[key][:-1].clone()
    elif change == "nan":
        tensors[key][0] = torch.nan
    elif change == "field":
        saved["lora_alphb"] = saved.pop("lora_alpha")
    elif change == "type":
        saved["peft_type"] = "LOSA"
    elif change == "hang":
        saved["target_modules"] = r"(\w+\.?)+!"
    save_file(tensors, file)
    config.write_text(json.dumps(saved) if change != "json" else "{")
    with pytest.raises(ExpertError) as e:
        expert_adapter(tmp_path, {}, load_base(str(folder)))
        load_expert(policy, tmp_path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 700


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_byte_of_a_sealed_lora_is_an_expert_error(folder: Path, tmp_path: Path, name: str) -> None:
    policy, _ = trained(folder, lora(), tmp_path)
    seal_adapter(tmp_path)
    load_expert(policy, tmp_path)
    file = tmp_path / name
    whole = file.read_bytes()
    for i in range(len(whole) // 2, len(whole), 97):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(ExpertError) as e:
            load_expert(policy, tmp_path)
        assert "\n" not in str(e.value)
    file.write_bytes(whole)
    load_expert(policy, tmp_path)


def test_another_base_is_named(folder: Path, tmp_path: Path) -> None:
    """`test`, `validate` and `fit --expert` say so as `adapt` does."""
    twin = load_base(str(folder))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    twin.save_pretrained(tmp_path / "twin")
    byte_tokenizer().save_pretrained(tmp_path / "twin")
    for i, (adapter, words) in enumerate([({"target_modules": "mlp"}, "other weights"), (lora(), "was trained on")]):
        trained(folder, adapter, tmp_path / str(i))
        module = SVFReinforceModule(str(tmp_path / "twin"), adapter={"peft_type": adapter.get("peft_type", "SVF")})
        module.expert = tmp_path / str(i)
        with pytest.warns(UserWarning, match=words) as found:
            module.configure_model()
        assert len([w for w in found if words in str(w.message)]) == 1


def test_a_lora_run_is_scored_as_it_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_llama(tmp_path / "my bäse", init=0.25)
    small = ["--data.task", "toy_task.FirstLetter", "--model.sampling.max_new_tokens", "6", "--quiet"]
    adamw = ["--optimizer", "AdamW", "--optimizer.lr", "1e-2"]
    adapter = "{peft_type: LORA, r: 16, lora_alpha: 512, use_rslora: true, target_modules: [up_proj]}"
    command = ["fit", "--config", "conf/tiny.yaml", "--model.base", str(base), "--model.adapter", adapter, *small]
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.batch_size", "8"]
    steps += ["--trainer.logger", "false"]
    assert main([*command, *adamw, *steps, "--run_dir", str(tmp_path / "fit")]) == 0
    expert = str(tmp_path / "fit" / "expert")
    assert (tmp_path / "fit" / "expert" / "manifest.sha256").is_file()
    assert main(["test", "--expert", expert, *small, "--run_dir", str(tmp_path / "test")]) == 0
    records = [
        [json.loads(line)["completion"] for line in (tmp_path / run / "records.jsonl").read_text().splitlines()]
        for run in ("fit", "test")
    ]
    assert records[0] == records[1]
    assert fingerprint(load_base(str(base)))
    capsys.readouterr()
    contradiction = ["--config", "conf/tiny.yaml", "--model.base", str(base), "--model.adapter", "{r: 8}", *small]
    assert main(["fit", *contradiction, *adamw, "--expert", expert, "--run_dir", str(tmp_path / "no")]) == 2
    assert "model.adapter.r is 8, but" in (err := capsys.readouterr().err) and "16" in err
