"""A merged export is a plain model folder that says what the policy said, and the policy stays what it was."""

import shutil

import pytest
import torch
from fake_experts import make_experts
from fakes import ids
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vision_bases import FAMILIES, drawn, inputs, make_vision

from transformer2.cli import main
from transformer2.errors import UserError
from transformer2.export import export_merged
from transformer2.policy import build_policy, load_base, load_tokenizer

SVF = {"target_modules": "all-linear"}


def randomized(policy):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


@pytest.mark.parametrize(
    "adapter",
    [
        SVF,
        {**SVF, "form": "factored"},
        {**SVF, "parametrization": "sigmoid_renorm"},
        {**SVF, "modules_to_save": ["norm"]},
        {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    ],
    ids=["svf", "factored", "renorm", "modules_to_save", "lora"],
)
def test_the_export_says_what_the_policy_says(llama, tmp_path, adapter):
    policy = randomized(build_policy(load_base(str(llama)), adapter))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    expected = policy(ids()).logits
    out = export_merged(policy, load_tokenizer(str(llama)), tmp_path / "new" / "merged")
    plain, notes = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    torch.testing.assert_close(plain(ids()).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, AutoModelForCausalLM.from_pretrained(llama)(ids()).logits, atol=0.1)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template and tokenizer("say 1")["input_ids"]
    assert plain.generation_config.eos_token_id == [1, 4]
    exact = adapter.get("peft_type") != "LORA"
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) if exact else torch.allclose(parameter, before[name], atol=1e-5)


def test_tied_weights_stay_tied_and_bf16_stays_bf16(llama, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=300, tie_word_embeddings=True, **shape)).bfloat16()
    policy = randomized(build_policy(base.eval(), SVF))
    out = export_merged(policy, load_tokenizer(str(llama)), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert plain.dtype == torch.bfloat16 and plain.lm_head.weight is plain.model.embed_tokens.weight
    merged = policy.merge_and_unload().state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in plain.state_dict().items())


def test_a_folder_with_files_is_refused(llama, tmp_path):
    (tmp_path / "keep").write_text("x")
    with pytest.raises(UserError, match="empty"):
        export_merged(build_policy(load_base(str(llama)), SVF), load_tokenizer(str(llama)), tmp_path)


def test_a_damaged_adapter_is_refused_and_nothing_is_written(llama, tmp_path):
    policy = build_policy(load_base(str(llama)), SVF)
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if ".svf_" not in name}
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad)[0] = torch.nan
    with pytest.raises(UserError, match="non-finite"):
        export_merged(policy, load_tokenizer(str(llama)), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters() if n in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_that_takes_pictures_is_exported_with_its_processor(family, tmp_path):
    """Read back as any such model is: AutoModelForImageTextToText, AutoProcessor (`inputs`), generation config."""
    folder, pictures = make_vision(tmp_path / "base", family), [drawn(1), drawn(2)]
    policy = randomized(build_policy(AutoModelForImageTextToText.from_pretrained(folder).eval(), SVF))
    out = export_merged(policy, load_tokenizer(str(folder)), tmp_path / "merged")
    plain, notes = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    given = inputs(out, pictures)
    assert all(torch.equal(value, given[name]) for name, value in inputs(folder, pictures).items())
    torch.testing.assert_close(plain(**given).logits, policy(**given).logits, rtol=1e-4, atol=1e-4)
    own, theirs = plain.state_dict(), AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    tower = [name for name in own if ".language_model.layers." not in name]
    assert len(tower) > 20 and all(torch.equal(own[name], theirs[name]) for name in tower)
    assert plain.generation_config.eos_token_id == 3
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*processor_config.json"))
    policy.get_base_model().config._name_or_path = str(tmp_path / "bare")
    with pytest.raises(UserError, match=r"no processor_config\.json.*AutoProcessor"):
        export_merged(policy, load_tokenizer(str(folder)), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_command_exports_a_base_that_takes_pictures(tmp_path, capsys):
    base, out = str(make_vision(tmp_path / "base")), tmp_path / "out"
    (expert,) = make_experts(tmp_path, base, ("reading",), std=0.1)
    assert main(["export", "--expert", expert, "--out", str(out), "--quiet"]) == 0
    again = load_base(str(out))  # with its processor, or it would be refused
    assert again.config.model_type == "llava_next"
    moved = [name for name, p in load_base(base).named_parameters() if not torch.equal(p, again.get_parameter(name))]
    assert len(moved) == 14 and all(".language_model.layers." in name for name in moved)
    capsys.readouterr()
    assert main(["export", "--expert", expert, "--out", f"{out}.gguf", "--format", "gguf"]) == 2
    assert "takes pictures" in (error := capsys.readouterr().err) and "--format hf" in error and error.count("\n") == 1
