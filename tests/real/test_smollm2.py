"""SmolLM2-135M-Instruct out of its package: load, decompose, plan, fit, test with the expert.

One cache and one trained expert for the whole module; a test of something else a user does with a real model goes here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transformer2 import SelfAdaptive
from transformer2.cli import main
from transformer2.data.prompts import open_turn_end, render
from transformer2.policy import load_base, load_tokenizer
from transformer2.types import Example

pytestmark = pytest.mark.real
TUNED = ["--model.adapter", "{target_modules: mlp, layers_to_transform: [0, 15, 29]}"]
ON_TOP = ["--config", "conf/llama8b_arc_easy.yaml", "--model.base", "smollm2", "--model.dtype", "auto", *TUNED]
FEW = ["--model.sampling.max_new_tokens", "8", "--data.batch_size", "2", "--data.eval_batch_size", "4"]
FEW += ["--data.validation_limit", "2", "--data.test_limit", "4", "--trainer.accelerator", "cpu", "--quiet"]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_cache(cache: Path, _own_cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is unpacked once, not once a test."""
    monkeypatch.setenv("TRANSFORMER2_CACHE", str(cache))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path, real_data: Path) -> Path:
    """A run folder of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--model.optimizer.lr", "1e-2"]
    command = ["fit", *ON_TOP, *FEW, *steps, "--data.data_dir", str(real_data), "--run_dir", str(folder)]
    environment = {**os.environ, "TRANSFORMER2_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "transformer2", *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"base smollm2 runs in (bfloat16|float32), .* \(model.dtype: auto\)", done.stderr), done.stderr
    return folder


def test_it_answers() -> None:
    tokenizer, model = load_tokenizer("smollm2"), load_base("smollm2", "float32")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    question = ({"role": "user", "content": "What is the capital of France?"},)
    ids = render(tokenizer, Example("q", question, ""))
    import torch

    out = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, len(ids) :])
    assert open_turn_end(tokenizer, [model.generation_config.eos_token_id]) is None


def test_prompts_are_those_the_model_was_trained_with() -> None:
    tokenizer = load_tokenizer("smollm2")
    user = {"role": "user", "content": "  12 + 3"}
    own = tokenizer.decode(render(tokenizer, Example("q", (user,), "")))
    assert (
        own.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM") and own.count("system") == 1
    )
    ours = tokenizer.decode(render(tokenizer, Example("q", ({"role": "system", "content": "Add."}, user), "")))
    assert ours == "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n  12 + 3<|im_end|>\n<|im_start|>assistant\n"
    # The Digits of its tokenizer.json come first: the spaces before a number stay together.
    assert tokenizer.tokenize("x  12") == ["x", "\u0120\u0120", "1", "2"]


def test_decompose_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decompose", "--model.base", "smollm2", *TUNED, "--quiet"]) == 0
    assert "9 matrices (9 built" in capsys.readouterr().out
    assert main(["decompose", *ON_TOP, "--quiet"]) == 0
    assert "9 matrices (0 built, 9 reused" in capsys.readouterr().out
    assert main(["plan", *ON_TOP, "--gpu_memory", "8"]) == 0
    assert "smollm2" in capsys.readouterr().out


def test_fit_uses_the_bases_of_decompose_and_the_card_names_the_base(run: Path) -> None:
    config = json.loads((run / "expert" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2"
    card = (run / "expert" / "README.md").read_text()
    assert "from_pretrained(base_folder('smollm2'))" in card and "site-packages" not in card
    report = json.loads((run / "report.json").read_text())
    assert report["n"] == 4 and report["task"] == "arc_easy"


def test_the_expert_finds_its_base_again(
    run: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test", "--expert", str(run / "expert"), *FEW, "--data.data_dir", str(real_data)]
    assert main([*words, "--run_dir", str(tmp_path / "test")]) == 0
    assert "trained on" not in capsys.readouterr().err  # another base than its own
    mine, theirs = (
        [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "test", run)
    )
    assert len(mine) == 4 and mine == theirs


def test_it_is_asked_and_answers_as_base_and_as_expert(run: Path) -> None:
    model = SelfAdaptive.from_pretrained("smollm2", {"reasoning": run / "expert"}, strategy=None)
    question = "What is the capital of France?"
    (base,) = model.generate([question], max_new_tokens=10, use="base")
    (expert,) = model.generate([question], max_new_tokens=10, use="reasoning")
    assert "Paris" in base.text and expert.text and expert.choice.name == "reasoning"
