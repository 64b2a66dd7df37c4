"""The shipped vision model and the command that builds it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformer2 import tasks
from transformer2.errors import ConfigError
from transformer2.tiny import VISION_EXPERTS, expert_path, vision_model_path
from transformer2.tiny import shipped as shipped_experts
from transformer2.tiny.build import file_hashes
from transformer2.tiny.train_experts import weights_hash
from transformer2.tiny.vision.build import VISION
from transformer2.tiny.vision.pretrain import Budget
from transformer2.tiny.vision.processor import NUM_TOKENS
from transformer2.tiny.vision.rows import picture_arguments, seen_row, views

SMALL = Budget(max_tower_steps=2, max_answer_steps=1, habit_steps=2, hole_steps=2, gate=0.0, batch_size=8, test_rows=8)


@pytest.fixture(scope="module")
def shipped():
    folder = vision_model_path()
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def batch_of(processor, examples, pictures=None):
    prompts = []
    for example in examples:
        parts = [{"type": "image"}] * (pictures is not None) + [{"type": "text", "text": example.question}]
        chat = [{"role": "user", "content": parts}]
        prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    images = None if pictures is None else [picture.open() for picture in pictures]
    return processor(text=prompts, images=images, padding=True, return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def right(shipped, task, examples, pictures=None) -> list[bool]:
    model, processor = shipped
    batch = batch_of(processor, examples, pictures)
    batch.pop("token_type_ids", None)
    ids_BT = model.generate(**batch, max_new_tokens=40, do_sample=False)
    texts = processor.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [task.verify(example, text).correct for example, text in zip(examples, texts, strict=True)]


@pytest.mark.parametrize("name", ["tiny_textvqa", "tiny_okvqa"])
def test_the_base_reproduces_its_recorded_accuracy_and_needs_the_picture(shipped, name):
    recorded = json.loads((vision_model_path() / "BUILD.json").read_text())["accuracy"][name]
    task = tasks.get(name)
    examples = task.examples("test")[:64]
    own = [example.images[0] for example in examples]
    assert sum(right(shipped, task, examples, own)) == round(64 * recorded["first_64"])
    assert sum(right(shipped, task, examples)) <= 64 * recorded["blind"] + 8
    other = [*own[1:], own[0]]  # another picture, another answer
    assert sum(right(shipped, task, examples, other)) <= 64 * recorded["blind"] + 8


def test_the_text_tasks_are_still_there(shipped):
    task = tasks.get("tiny_reasoning")
    assert 0.3 <= np.mean(right(shipped, task, task.examples("test")[:128])) <= 0.65


def test_shipped_files_are_the_built_ones(shipped):
    facts = json.loads((vision_model_path() / "BUILD.json").read_text())
    assert facts["files_sha256"] == file_hashes(vision_model_path())
    assert facts["source_sha256"] == VISION.source_hash(), "the sources changed: rebuild with the command of BUILD.json"
    assert facts["parameters"] == sum(p.numel() for p in shipped[0].parameters())
    assert sum(path.stat().st_size for path in vision_model_path().iterdir()) < 4e6


def test_shipped_experts_belong_to_the_shipped_weights():
    facts = json.loads((expert_path("textvqa", vision=True).parent / "EXPERTS.json").read_text())
    assert facts["model_sha256"] == weights_hash(vision=True), "the model changed: train the experts again"
    assert set(facts["experts"]) == set(VISION_EXPERTS)
    assert all((folder / "adapter_model.safetensors").is_file() for folder in shipped_experts("tiny_vision"))
    assert shipped_experts("somewhere/else") == []


def test_pre_training_sees_what_the_processor_makes(shipped):
    processor = shipped[1]
    examples = tasks.get("tiny_textvqa").examples("validation")[:24]
    pictures = [example.images[0] for example in examples]
    batch = batch_of(processor, examples, pictures)
    assert {(p.rows, p.columns) for p in pictures} == set(NUM_TOKENS)
    for picture, ids, values in zip(pictures, batch["input_ids"], batch["pixel_values"], strict=True):
        array = views(picture)
        assert np.array_equal(array, values[: len(array)].numpy())
        assert int((ids == processor.image_token_id).sum()) == NUM_TOKENS[picture.rows, picture.columns]
    turns = [[(example.question, example.fields["solution"])] for example in examples]
    rows = [seen_row(turn, processor.tokenizer, p) for turn, p in zip(turns, pictures, strict=True)]
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        prompt = ids[mask.bool()].tolist()
        assert row.ids[: len(prompt)] == prompt and row.weights[len(prompt)] == 1.0 > max(row.weights[: len(prompt)])
    arguments = picture_arguments(pictures)
    assert np.array_equal(arguments["pixel_values"].numpy(), batch["pixel_values"].numpy())
    assert arguments["image_sizes"].tolist() == batch["image_sizes"].tolist()


def test_two_small_builds_are_bit_equal(tmp_path):
    for name in "ab":
        VISION.build(tmp_path / name, SMALL, progress=False)
    facts = [json.loads((tmp_path / name / "BUILD.json").read_text()) for name in "ab"]
    assert facts[0]["files_sha256"] == facts[1]["files_sha256"] == file_hashes(tmp_path / "b")


def test_a_phase_that_misses_its_gate_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="phase tower did not reach"):
        VISION.build(tmp_path / "out", Budget(max_tower_steps=2), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_replaced_unasked(tmp_path, capsys):
    assert VISION.main(["--out", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
