"""What transformers alone does with our files: an expert of `transformer2 fit`, and a merged export."""

import pytest
import torch
from fakes import ids
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from transformer2.cli import main
from transformer2.export import export_merged
from transformer2.policy import load_tokenizer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def expert(llama, tmp_path_factory):
    """The expert folder of a real run of three steps."""
    run = tmp_path_factory.mktemp("runs") / "first_letter"
    command = [
        *("fit", "--config", "conf/tiny.yaml", "--model.base", str(llama), "--data.task", "toy_task.FirstLetter"),
        *("--optimizer", "AdamW", "--optimizer.lr", "0.1", "--data.batch_size", "32", "--data.validation_limit", "16"),
        *("--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--run_dir", str(run), "--quiet"),
    ]
    assert main(command) == 0
    return run / "expert"


@pytest.fixture(scope="module")
def policy(llama, expert):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), expert).eval()


def test_load_adapter_reads_an_expert_as_peft_does(llama, expert, policy):
    plain = AutoModelForCausalLM.from_pretrained(llama)
    base = plain(ids()).logits
    plain.load_adapter(str(expert))
    expected = policy(ids()).logits
    assert torch.equal(plain(ids()).logits, expected) and not torch.allclose(base, expected, atol=1e-3)
    plain.disable_adapters()
    assert torch.equal(plain(ids()).logits, base)
    plain.enable_adapters()
    assert torch.equal(plain(ids()).logits, expected)


def test_two_experts_under_two_names(llama, expert, policy):
    plain = AutoModelForCausalLM.from_pretrained(llama)
    for name in ("one", "two"):
        plain.load_adapter(str(expert), adapter_name=name)
    plain.set_adapter("one")
    assert torch.equal(plain(ids()).logits, policy(ids()).logits)


def test_from_pretrained_on_the_expert_folder_finds_its_base(expert, policy):
    """transformers reads adapter_config.json and loads the base model it names."""
    model = AutoModelForCausalLM.from_pretrained(expert)
    assert torch.equal(model(ids()).logits, policy(ids()).logits)


def test_an_adapter_saved_by_transformers_is_an_expert(llama, expert, policy, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(llama)
    plain.load_adapter(str(expert))
    plain.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path)
    assert torch.equal(again(ids()).logits, policy(ids()).logits)


def test_a_pipeline_speaks_with_the_merged_export(llama, policy, tmp_path):
    out = export_merged(policy, load_tokenizer(str(llama)), tmp_path / "merged")
    generate = pipeline("text-generation", model=str(out), tokenizer=str(out), device="cpu")
    messages = [{"role": "user", "content": "say 3"}]
    answer = generate(messages, max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
    tokenizer = AutoTokenizer.from_pretrained(llama)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        tokens = policy.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=4)
    assert answer == tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True) != ""
