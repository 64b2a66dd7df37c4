"""A merged export is a plain model folder that says what the policy said, and the policy stays what it was."""

import pytest
import torch
from fakes import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from transformer2.errors import UserError
from transformer2.export import export_merged
from transformer2.policy import build_policy, load_base, load_tokenizer

SVF = {"target_modules": "all-linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), init=0.25)


def randomized(policy):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def ids():
    return torch.arange(5, 25).view(2, 10)


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
def test_the_export_says_what_the_policy_says(folder, tmp_path, adapter):
    policy = randomized(build_policy(load_base(str(folder)), adapter))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    expected = policy(ids()).logits
    out = export_merged(policy, load_tokenizer(str(folder)), tmp_path / "new" / "merged")
    plain, notes = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    torch.testing.assert_close(plain(ids()).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, AutoModelForCausalLM.from_pretrained(folder)(ids()).logits, atol=0.1)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template and tokenizer("say 1")["input_ids"]
    assert plain.generation_config.eos_token_id == [1, 4]
    exact = adapter.get("peft_type") != "LORA"
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) if exact else torch.allclose(parameter, before[name], atol=1e-5)


def test_tied_weights_stay_tied_and_bf16_stays_bf16(folder, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=300, tie_word_embeddings=True, **shape)).bfloat16()
    policy = randomized(build_policy(base.eval(), SVF))
    out = export_merged(policy, load_tokenizer(str(folder)), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert plain.dtype == torch.bfloat16 and plain.lm_head.weight is plain.model.embed_tokens.weight
    merged = policy.merge_and_unload().state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in plain.state_dict().items())


def test_a_folder_with_files_is_refused(folder, tmp_path):
    (tmp_path / "keep").write_text("x")
    with pytest.raises(UserError, match="empty"):
        export_merged(build_policy(load_base(str(folder)), SVF), load_tokenizer(str(folder)), tmp_path)


def test_a_damaged_adapter_is_refused_and_nothing_is_written(folder, tmp_path):
    policy = build_policy(load_base(str(folder)), SVF)
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if ".svf_" not in name}
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad)[0] = torch.nan
    with pytest.raises(UserError, match="non-finite"):
        export_merged(policy, load_tokenizer(str(folder)), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters() if n in before)
