"""Damaged, foreign and hostile expert folders: every way to load refuses them, in one line."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_folders import CONFIG, GOOD_KEY, UP, WEIGHTS, edit_config, edit_weights, refusal
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import transformer2
from transformer2 import tiny
from transformer2.cli import main
from transformer2.errors import ExpertError
from transformer2.experts import read_expert, stamp_expert
from transformer2.svf.adapter_folder import config_for_peft as verify


def test_files_that_are_missing_or_foreign(folder: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in refusal(folder)
    (folder / WEIGHTS).write_bytes(weights[:100])
    assert "sha256" in refusal(folder)
    edit_config(folder, sha256=None)
    assert "not readable as safetensors" in refusal(folder)
    (folder / CONFIG).write_bytes(b"\xff{")
    assert f"{CONFIG} is not JSON" in refusal(folder)
    (folder / CONFIG).unlink()
    assert f"{CONFIG} is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LORA"), ("task", 3), ("step", "4"), ("step", True), ("score", 1.5), ("score", float("nan")),
        ("base_fingerprint", []), ("sha256", 1), ("expert_format_version", 99), ("base_model_name_or_path", {}),
    ],
)  # fmt: skip
def test_odd_config_fields_are_named(folder: Path, field: str, value: Any) -> None:
    edit_config(folder, **{field: value})
    message = refusal(folder)
    assert CONFIG in message and repr(field) in message


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("../../x", torch.zeros(3), "'../../x'"),
        ("base_model.model.../../x.svf_z.delta", torch.zeros(3), "not an SVF expert"),
        ("base_model.model.a/b.svf_z.delta", torch.zeros(3), "not an SVF expert"),
        (GOOD_KEY + "\n", torch.zeros(3), "not an SVF expert"),
        (GOOD_KEY.replace("delta", "logit"), torch.zeros(3), "not an SVF expert"),
        ("base_model.model.lm_head.weight", torch.zeros(3), "not an SVF expert"),
        (GOOD_KEY, torch.zeros(3, dtype=torch.bfloat16), "torch.bfloat16 (3,)"),
        (GOOD_KEY, torch.zeros(3, 3), "torch.float32 (3, 3)"),
        (GOOD_KEY, torch.zeros(0), "torch.float32 (0,)"),
        (GOOD_KEY, torch.tensor([1.0, float("nan")]), "non-finite"),
    ],
)
def test_odd_tensors_are_named(folder: Path, key: str, tensor: torch.Tensor, message: str) -> None:
    edit_weights(folder, **{"base_model.model.model.layers.1.mlp.up_proj.svf_z.delta": torch.zeros(3), key: tensor})
    refused = refusal(folder)
    assert WEIGHTS in refused and message in refused


def content(folder: Path) -> Any:
    """What an expert folder says, however its JSON is laid out."""
    return json.loads((folder / CONFIG).read_text()), (folder / WEIGHTS).read_bytes()


def damages(folder: Path, count: int, seed: int = 0) -> Iterator[str]:
    """`count` single bytes of both files, one after the other, changed and put back; gives the file's name."""
    rng = random.Random(seed)
    good = {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    for i in range(count):
        name = (WEIGHTS, CONFIG)[i % 2]
        damaged = bytearray(good[name])
        damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        (folder / name).write_bytes(damaged)
        yield name
        (folder / name).write_bytes(good[name])


@pytest.mark.parametrize("source", ["saved", "shipped"])
def test_no_damaged_byte_passes(source: str, folder: Path, tmp_path: Path) -> None:
    """1,000 damages, read by us and by PEFT: the same content, or a typed error of one line."""
    if source == "shipped":
        folder = shutil.copytree(tiny.expert_path("math"), tmp_path / "shipped")
    whole, outcomes = content(folder), Counter[str]()
    for name in damages(folder, 1000):
        for read in (read_expert, PeftConfig.from_pretrained):
            try:
                read(str(folder))
                assert content(folder) == whole, f"damage of {name} passed"
                outcomes["same"] += 1
            except ExpertError as e:
                assert "\n" not in str(e) and str(e).isprintable()
                outcomes["refused"] += 1
    assert outcomes["refused"] > 1900


def test_truncations_and_several_flips_are_typed_errors(folder: Path) -> None:
    rng = random.Random(0)
    for name in (WEIGHTS, CONFIG):
        data = (folder / name).read_bytes()
        for _ in range(100):
            (folder / name).write_bytes(data[: rng.randrange(len(data) - 1)])
            refusal(folder)
        (folder / name).write_bytes(data)
    # Without a checksum (format 1) the parser stands alone: still nothing but ExpertError.
    edit_config(folder, sha256=None, config_sha256=None, expert_format_version=1)
    data = (folder / WEIGHTS).read_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(min(len(damaged), 300))] ^= rng.randrange(1, 256)
        (folder / WEIGHTS).write_bytes(damaged)
        try:
            read_expert(folder)
        except ExpertError as e:
            assert "\n" not in str(e)


@pytest.mark.parametrize("how", ["PeftModel", "load_adapter", "transformers"])
def test_every_way_to_load_checks(how: str, base_folder: Path, tmp_path: Path) -> None:
    """PEFT's two ways and transformers' own, which reads the files by itself."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    get_peft_model(base, transformer2.SVFConfig()).save_pretrained(tmp_path / "e")
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    if how == "load_adapter":
        model = get_peft_model(model, transformer2.SVFConfig())
    ways = {
        "PeftModel": lambda: PeftModel.from_pretrained(model, tmp_path / "e"),
        "load_adapter": lambda: model.load_adapter(tmp_path / "e", "other"),
        "transformers": lambda: model.load_adapter(str(tmp_path / "e")),
    }
    whole, refused = content(tmp_path / "e"), 0
    for _ in damages(tmp_path / "e", 30, seed=1):
        if content_differs(tmp_path / "e", whole):
            refusal(call=ways[how])
            refused += 1
    assert refused > 25
    ways[how]()


def content_differs(folder: Path, whole: Any) -> bool:
    try:
        return bool(content(folder) != whole)
    except (ValueError, RecursionError):
        return True


@pytest.mark.parametrize(
    "fields",
    [
        {"base_fingerprint": "aaaa:bbbc"}, {"base_model_name_or_path": "some/bass"}, {"task": "gsm8l"}, {"score": 0.76},
        {"step": 41}, {"target_modules": [UP]}, {"revision": "x"}, {"trained_parametrization": "sigmoid_renorm"},
        {"extra": 1}, {"form": "merged"}, {"expert_format_version": 1}, {"config_sha256": None},
    ],
)  # fmt: skip
def test_an_edited_fact_is_seen_and_can_be_accepted(folder: Path, fields: dict[str, Any]) -> None:
    edit_config(folder, **fields)
    assert "config_sha256" in refusal(folder) and "experts stamp" in refusal(folder)
    assert main(["experts", "stamp", str(folder)]) == 0
    saved = json.loads((folder / CONFIG).read_text())
    restamped = ("config_sha256", "expert_format_version")
    assert read_expert(folder) and all(saved[k] == v for k, v in fields.items() if k not in restamped)


@pytest.mark.parametrize("bomb", ["fifo", "zero", "socket", "huge", "folder", "deep", "digits"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_files_that_would_hang_or_fill_the_memory_are_refused(folder: Path, name: str, bomb: str) -> None:
    file = folder / name
    file.unlink()
    if bomb == "fifo":
        os.mkfifo(file)
    elif bomb == "zero":
        file.symlink_to("/dev/zero")
    elif bomb == "socket":
        with socket.socket(socket.AF_UNIX) as s, contextlib.chdir(folder):
            s.bind(name)
    elif bomb == "huge":
        file.touch()
        os.truncate(file, 2**40)
    elif bomb == "folder":
        file.mkdir()
    else:
        deep, digits = "[" * 200_000 + "]" * 200_000, "9" * 10_000
        file.write_text(f'{{"peft_type": "SVF", "step": {deep if bomb == "deep" else digits}}}')
    assert name in refusal(folder)
    assert name in refusal(folder, call=lambda folder: verify(folder / CONFIG))


def test_nothing_of_a_strangers_reaches_the_terminal_raw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(
        folder, task="\x1b]0;owned\x07\x1b[2J\ud800" + "A" * 100_000, base_model_name_or_path="\u202etxt.exe\n| x |"
    )
    (folder / "README.md").unlink()
    assert main(["experts", "stamp", str(folder)]) == 0 and main(["experts", "show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and "\\x1b]0;owned" in out and len(out) < 5000
    card = (folder / "README.md").read_text()
    assert "\x1b" not in card and "\u202e" not in card and len(card) < 5000 and "\n| x |" not in card
    edit_config(folder, step="\x1b[31m" * 1000)
    assert "\x1b" not in refusal(folder)
    edit_config(folder, step=1, task="x" * 2**23)
    assert "bytes" in refusal(folder)


@pytest.mark.parametrize(
    "fields",
    [{"target_modules": r"(\w+\.?)+!"}, {"exclude_modules": r"(\w+\.?)+!"},
     {"layers_to_transform": [0], "layers_pattern": r"(\w+\.?)+!"}],
    ids=["target_modules", "exclude_modules", "layers_pattern"],
)  # fmt: skip
def test_an_expression_that_takes_years_is_not_matched(base_folder: Path, tmp_path: Path, fields: Any) -> None:
    """The weights say which modules are tuned, so nobody has to ask a stranger's regular expression."""
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), transformer2.SVFConfig())
    policy.save_pretrained(tmp_path / "e")
    edit_config(tmp_path / "e", **fields)
    stamp_expert(tmp_path / "e")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "e")
    assert len(loaded.peft_config["default"].target_modules) == 6 == len(read_expert(tmp_path / "e").deltas)
