"""llama.cpp reads what `export --format gguf` writes of SmolLM2, and says what the adapted model says.

llama.cpp multiplies packed tensors with inputs that it rounds to 8 bits. SmolLM2's embedding is one, and it is the
head, so logits are off by about 0.1 under any expert, and where two tokens are nearly as likely the other one may win.
Tokens are compared one for one on a base whose head is the same numbers in F32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_experts import make_experts

from transformer2.cli import main
from transformer2.data.prompts import render
from transformer2.policy import build_policy, expert_adapter, load_base, load_expert, load_tokenizer
from transformer2.svf.gguf_base import gguf_file
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


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """That of every test, for the fixtures below too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two experts with random z around 1, spread 10 %, of every MLP and attention matrix."""
    return make_experts(tmp_path_factory.mktemp("experts"), "smollm2", names=("a", "b"), std=0.1)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer("smollm2")
    return [render(tokenizer, Example("q", ({"role": "user", "content": text},), "")) for text in QUESTIONS]


@pytest.fixture(scope="module")
def plain_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's file with the same embedding, and so head, in F32."""
    import gguf

    reader, file = gguf.GGUFReader(gguf_file("smollm2")), tmp_path_factory.mktemp("base") / "plain_head.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        head = tensor.name == "token_embd.weight"
        data = gguf.dequantize(tensor.data, tensor.tensor_type) if head else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=None if head else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama(file: Path) -> Any:
    """The file in llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (nox -s llama_cpp)")
    return llama_cpp.Llama(str(file), n_ctx=512, n_threads=1, verbose=False, logits_all=True)


def favourites(file: Path, prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """llama.cpp's most likely token at each place of an answer, given those before: its greedy answer while equal."""
    model, found = llama(file), []
    for ids, answer in zip(prompts, answers, strict=True):
        model.reset()
        model.eval(ids + answer[:-1])
        found.append(model.scores[len(ids) - 1 :][: len(answer)].argmax(-1).tolist())
    return found


@torch.no_grad()
def adapted(expert: str, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of the adapted model in fp32, each prompt alone."""
    base = load_base("smollm2", "float32")
    policy = build_policy(base, expert_adapter(expert, {}, base))
    load_expert(policy, expert)
    outs = [policy.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)[0] for ids in prompts]
    return [out[len(ids) :].tolist() for out, ids in zip(outs, prompts, strict=True)]


@pytest.mark.parametrize("weights", [None, "0.6,0.9"], ids=["one", "mixture"])
def test_greedy_tokens_of_the_f16_file_are_the_adapted_models(
    experts: list[str], prompts: list[list[int]], plain_head: Path, tmp_path: Path, weights: str | None
) -> None:
    expert, given = experts[0], ["--expert", experts[0]]
    if weights:
        expert, given = str(tmp_path / "mixed"), [*given, "--expert", experts[1], "--weights", weights]
        assert main(["experts", "mix", *experts, "--weights", *weights.split(","), "--out", expert]) == 0
    ours = adapted(expert, prompts)
    assert len({tuple(tokens) for tokens in ours}) == len(prompts)
    for name, base in (("exact", str(plain_head)), ("packed", "smollm2")):
        assert main([*EXPORT, *given, "--model.base", base, "--out", str(tmp_path / f"{name}.gguf")]) == 0
    assert favourites(tmp_path / "exact.gguf", prompts, ours) == ours
    theirs = favourites(tmp_path / "packed.gguf", prompts, ours)
    pairs = [(a, b) for one, other in zip(theirs, ours, strict=True) for a, b in zip(one, other, strict=True)]
    assert sum(a == b for a, b in pairs) >= 0.95 * len(pairs)


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
