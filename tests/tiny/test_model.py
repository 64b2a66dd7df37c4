"""The shipped model and the command that builds it."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformer2 import tasks
from transformer2.errors import ConfigError
from transformer2.tiny import model_b_path, model_path
from transformer2.tiny.build import TEXT, file_hashes
from transformer2.tiny.pretrain import Budget


@pytest.fixture(scope="module")
def shipped():
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    return AutoModelForCausalLM.from_pretrained(model_path()).eval(), tokenizer


@torch.no_grad()
def answers(model, tokenizer, examples):
    prompts = [
        tokenizer.apply_chat_template(list(e.messages), add_generation_prompt=True, tokenize=False) for e in examples
    ]
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt", return_token_type_ids=False)
    ids_BT = model.generate(**batch, max_new_tokens=40, do_sample=False)
    return tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(shipped, name: str, split: str = "test", count: int = 256) -> float:
    task = tasks.get(name)
    examples = task.examples(split)[:count]
    found = answers(*shipped, examples)
    return sum(task.verify(e, text).correct for e, text in zip(examples, found, strict=True)) / count


@pytest.mark.parametrize("name", ["tiny_math", "tiny_code", "tiny_reasoning"])
def test_the_base_is_between_35_and_65_percent(shipped, name):
    assert 0.35 <= accuracy(shipped, name) <= 0.65


def test_prompt_dispatch_of_the_base_is_between_60_and_85_percent(shipped):
    assert 0.60 <= accuracy(shipped, "tiny_dispatch") <= 0.85


@pytest.mark.parametrize(("folder", "seed"), [(model_path(), 0), (model_b_path(), 1)], ids=["tiny", "tiny_b"])
def test_shipped_files_are_the_built_ones(shipped, folder, seed):
    facts = json.loads((folder / "BUILD.json").read_text())
    assert facts["seed"] == seed and facts["files_sha256"] == file_hashes(folder)
    assert facts["source_sha256"] == TEXT.source_hash(), "the sources changed: rebuild with the command of BUILD.json"
    assert facts["parameters"] == sum(p.numel() for p in shipped[0].parameters())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6


def test_the_second_model_has_the_skills_of_the_first_and_other_weights(shipped):
    """So that a z of one on the other is neither hopeless nor at home."""
    model = AutoModelForCausalLM.from_pretrained(model_b_path()).eval()
    for name in ("tiny_math", "tiny_reasoning"):
        assert 0.30 <= accuracy((model, shipped[1]), name, count=128) <= 0.65
    first, second = (m.state_dict()["model.layers.0.mlp.up_proj.weight"] for m in (shipped[0], model))
    assert first.shape == second.shape
    assert torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).abs() < 0.2
    for file in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (model_path() / file).read_bytes() == (model_b_path() / file).read_bytes()


def test_two_small_builds_are_bit_equal(tmp_path):
    budget = Budget(max_lookup_steps=2, max_choice_steps=1, habit_steps=2, gate=0.0, batch_size=8)
    for name in "ab":
        TEXT.build(tmp_path / name, budget, seed=3, progress=False)
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    TEXT.build(tmp_path / "c", budget, seed=4, progress=False)
    assert file_hashes(tmp_path / "c")["model.safetensors"] != file_hashes(tmp_path / "a")["model.safetensors"]


def test_an_existing_folder_is_not_overwritten(tmp_path, capsys):
    assert TEXT.main(["--out", str(tmp_path)]) == 2
    assert "give another --out, or --force" in capsys.readouterr().err


def test_a_warm_up_that_misses_its_gate_is_an_error(tmp_path):
    budget = Budget(max_lookup_steps=1, max_choice_steps=1, habit_steps=1, batch_size=4)
    with pytest.raises(ConfigError, match="did not reach"):
        TEXT.build(tmp_path / "out", budget, progress=False)
    assert not (tmp_path / "out").exists()
