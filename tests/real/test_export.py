"""llama.cpp reads what `export --format gguf` writes of SmolLM2, and says what the adapted model says."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_experts import make_experts

from transformer2.cli import main
from transformer2.data.prompts import render
from transformer2.policy import build_policy, expert_adapter, load_base, load_expert, load_tokenizer
from transformer2.types import Example

pytestmark = pytest.mark.real
QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about rain.",
    "How do I sort a list in Python?",
    "What is 17 + 25?",
    "Name three animals that live in the sea.",
)
EXPORT = ["export", "--format", "gguf", "--model.dtype", "float32", "--quiet"]
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two experts with random z around 1, spread 10 %, of every MLP and attention matrix."""
    return make_experts(tmp_path_factory.mktemp("experts"), "smollm2", names=("a", "b"), std=0.1)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer("smollm2")
    return [render(tokenizer, Example("q", ({"role": "user", "content": text},), "")) for text in QUESTIONS]


def llama(file: Path) -> Any:
    """The file in llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (nox -s llama_cpp)")
    return llama_cpp.Llama(str(file), n_ctx=512, n_threads=1, verbose=False)


@torch.no_grad()
def adapted(expert: str, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of the unmerged model in fp32, each prompt alone."""
    base = load_base("smollm2", "float32")
    policy = build_policy(base, expert_adapter(expert, {}, base))
    load_expert(policy, expert)
    outs = [policy.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)[0] for ids in prompts]
    return [out[len(ids) :].tolist() for out, ids in zip(outs, prompts, strict=True)]


@pytest.mark.parametrize("weights", [None, "0.6,0.9"], ids=["one", "mixture"])
def test_greedy_tokens_of_the_f16_file_are_the_adapted_models(
    experts: list[str], prompts: list[list[int]], tmp_path: Path, weights: str | None
) -> None:
    expert, given = experts[0], ["--expert", experts[0]]
    if weights:
        expert, given = str(tmp_path / "mixed"), [*given, "--expert", experts[1], "--weights", weights]
        assert main(["experts", "mix", *experts, "--weights", *weights.split(","), "--out", expert]) == 0
    assert main([*EXPORT, *given, "--out", str(tmp_path / "f16.gguf")]) == 0
    model, ours = llama(tmp_path / "f16.gguf"), adapted(expert, prompts)
    theirs = []
    for ids in prompts:
        model.reset()
        tokens = islice(model.generate(ids, temp=0.0, repeat_penalty=1.0), NEW_TOKENS)
        theirs.append(list(until_eos(tokens, model.token_eos())))
    assert theirs == ours
    assert len({tuple(tokens) for tokens in ours}) == len(ours)


def until_eos(tokens: Any, eos: int) -> Any:
    """As `generate` ends: with the first EOS."""
    for token in tokens:
        yield token
        if token == eos:
            return


def test_the_q8_0_file_loads_and_answers_in_its_own_chat_template(experts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "q8_0.gguf"
    assert main([*EXPORT, "--expert", experts[0], "--gguf_type", "Q8_0", "--out", str(file)]) == 0
    model = llama(file)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    answer = model.create_chat_completion(messages, temperature=0.0, max_tokens=NEW_TOKENS)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    text = load_tokenizer("smollm2").apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = load_tokenizer("smollm2")(text, add_special_tokens=False)["input_ids"]
    assert model.tokenize(text.encode(), add_bos=False, special=True) == ids
