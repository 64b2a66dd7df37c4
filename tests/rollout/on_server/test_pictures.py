"""Rollouts with pictures by a real vLLM server; its models of these families import torchvision."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vision_bases import FAMILIES, drawn, make_vision

from transformer2.data.prompts import collate, render
from transformer2.errors import DataError
from transformer2.module.scores import score
from transformer2.pictures import PictureFile
from transformer2.policy import build_policy, eos_token_ids, lm_head, load_base, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.server import PYTHON_VARIABLE
from transformer2.rollout.vllm import VLLMEngine, VLLMOptions
from transformer2.svf.layer import svf_layers
from transformer2.types import Example, PromptBatch
from transformer2.vision import FIRST, pictures_of

pytestmark = pytest.mark.vllm
GREEDY, FREE = Sampling(0.0, max_new_tokens=8), Sampling(1.0, max_new_tokens=8)
SIZES = ((80, 50), (40, 90), (64, 64))


class Seeing:
    """A policy of one family, a server of its base that `VLLMEngine` starts, and a batch of prompts."""

    def __init__(self, family: str, folder: Path) -> None:
        base = make_vision(folder / "base", family, hidden=128)  # vLLM's attention on a CPU wants heads of 32
        # Hub checkpoints have the tower under these names, and vLLM knows no others.
        state = load_file(base / "model.safetensors")
        named = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): value for name, value in state.items()}
        save_file(named, base / "model.safetensors", {"format": "pt"})
        self.tokenizer = load_tokenizer(str(base))
        self.policy = build_policy(load_base(str(base), "float32"), {"peft_type": "SVF", "basis_cache": "off"})
        self.pictures = []
        for i, size in enumerate(SIZES):
            drawn(i, size).save(folder / f"{i}.png")
            self.pictures.append(PictureFile(str(folder / f"{i}.png")))
        eos = eos_token_ids(self.policy, self.tokenizer)
        self.here = HFEngine(self.tokenizer, eos, merge=True)
        self.there = VLLMEngine(self.tokenizer, eos, str(base), self.policy, VLLMOptions())

    def batch(self, *shown: tuple[int, ...]) -> PromptBatch:
        message = {"role": "user", "content": "How many?"}
        examples = [Example("", (message,), "", images=tuple(self.pictures[i] for i in one)) for one in shown]
        return collate(examples, [render(self.tokenizer, e) for e in examples], self.tokenizer.pad_token_id)

    def move(self, seed: int) -> None:
        torch.manual_seed(seed)
        for _, layer in svf_layers(self.policy):
            layer.parameters_of("default")[0].data.normal_(0, 0.2)


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request: Any, has_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    probe = [os.environ[PYTHON_VARIABLE], "-c", "import torchvision"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("vLLM's environment has no torchvision that was built for its torch")
    seeing = Seeing(request.param, tmp_path_factory.mktemp(request.param))
    yield seeing
    seeing.there.server.stop()


def test_completions_are_the_trainers_under_every_z(seeing: Seeing) -> None:
    batch, found = seeing.batch((0,), (1,), (2, 0), (), (2,)), []
    for seed in range(3):
        seeing.move(seed)
        found.append(seeing.here.generate(seeing.policy, batch, GREEDY, 0).completions)
        assert seeing.there.generate(seeing.policy, batch, GREEDY, 0).completions == found[-1]
    assert len({text for texts in found for text in texts}) > 10
    assert seeing.there.generate(seeing.policy, seeing.batch((1,), (0,)), GREEDY, 0).completions == (
        found[-1][1],
        found[-1][0],
    )


def test_its_logprobs_are_the_scorers_and_no_image_id_is_drawn(seeing: Seeing) -> None:
    seeing.move(0)
    rollouts = seeing.there.generate(seeing.policy, seeing.batch((0,), (1, 2), ()).repeat(8), FREE, 3)
    mask_BC = rollouts.completion_mask_BC.bool()
    with torch.no_grad():
        ours_N = score(seeing.policy, lm_head(seeing.policy), rollouts, None).logprobs_N
    assert (ours_N - rollouts.logprobs_BC[mask_BC]).abs().max() < 0.05  # torchvision resizes otherwise than Pillow
    inputs: Any = pictures_of(seeing.policy)
    assert not torch.isin(rollouts.completion_ids_BC, torch.tensor(inputs.banned)).any()


def test_other_tokens_of_a_picture_are_refused(seeing: Seeing) -> None:
    """The last test: what ends a run ends its server."""
    (ids,) = seeing.batch((0,)).input_ids_BP.tolist()
    del ids[max(t for t, i in enumerate(ids) if i >= FIRST)]
    fewer = collate([Example("", (), "")], [ids], 0)
    with pytest.raises(DataError, match=r"which reads pictures otherwise; use model\.rollout: hf"):
        seeing.there.generate(seeing.policy, fewer, GREEDY, 0)
