"""Expert folders: read, refuse, mix, compare, save for PEFT, import; damage never passes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import transformer2
from transformer2 import tiny
from transformer2.adaptation.mixture import Mixture
from transformer2.adapters import expert_adapter
from transformer2.cli import main
from transformer2.errors import ExpertError, UserError
from transformer2.experts import (
    Expert,
    compare_experts,
    import_reference_checkpoint,
    load_experts,
    mix_experts,
    mix_folders,
    read_expert,
    save_expert,
    show_expert,
    stamp_expert,
)  # fmt: skip
from transformer2.svf.adapter_folder import config_for_peft as verify
from transformer2.svf.fingerprint import fingerprint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.10.mlp.down_proj"


def expert(name: str = "math", seed: int = 0, **changes: Any) -> Expert:
    g = torch.Generator().manual_seed(seed)
    deltas = {UP: torch.randn(12, generator=g) / 10, DOWN: torch.randn(7, generator=g) / 10}
    facts = {"task": "gsm8k", "step": 40, "score": 0.75, "base": "some/base", "base_fingerprint": "aaaa:bbbb"}
    return Expert(name, None, **{**facts, "deltas": deltas, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_expert(expert(), tmp_path / "math")


def edit_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def edit_weights(folder: Path, **tensors: Any) -> None:
    """Replace the tensors, with a checksum that agrees: what is wrong must be seen in the tensors."""
    save_file(tensors, folder / WEIGHTS)
    edit_config(folder, sha256=None)


def refusal(*args: Any, call: Any = read_expert, **kwargs: Any) -> str:
    with pytest.raises(ExpertError) as e:
        call(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=40
    )
    folder = tmp_path_factory.mktemp("experts") / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


# Folders


def test_a_saved_expert_reads_back_exactly(folder: Path) -> None:
    assert {f.name for f in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert set(load_file(folder / WEIGHTS)) == {f"base_model.model.{m}.svf_z.delta" for m in (UP, DOWN)}
    back, original = read_expert(folder), expert()
    assert list(back.deltas) == [UP, DOWN] and back.sha256
    assert all(torch.equal(back.deltas[m], original.deltas[m]) for m in original.deltas)
    assert replace(back, path=None, sha256=None, deltas={}) == replace(original, deltas={})


def test_a_run_folder_names_its_expert_after_the_run(tmp_path: Path) -> None:
    save_expert(expert(), tmp_path / "runs" / "my_run" / "expert")
    assert read_expert(tmp_path / "runs" / "my_run" / "expert").name == "my_run"


def test_peft_loads_what_is_saved_and_reads_what_peft_saves(base_folder: Path, tmp_path: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), transformer2.SVFConfig(task="gsm8k"))
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()) * (i + 1))
    model.save_pretrained(tmp_path / "peft")
    read = read_expert(tmp_path / "peft")
    assert read.task == "gsm8k" and len(read.deltas) == 6
    assert read.base_fingerprint == fingerprint(AutoModelForCausalLM.from_pretrained(base_folder))

    save_expert(read, tmp_path / "ours")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "ours")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_saving_is_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert "exists" in refusal(expert(seed=1), folder, call=save_expert)
    real = os.fsync
    calls = []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    assert "No space left" in refusal(expert(seed=1), folder, overwrite=True, call=save_expert)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    save_expert(expert(seed=1), folder, overwrite=True)
    assert torch.equal(read_expert(folder).deltas[UP], expert(seed=1).deltas[UP])
    assert [f.name for f in folder.parent.iterdir()] == ["math"]  # no temp folders left


EACH_LINE = """
import os, shutil, sys
from pathlib import Path
from transformer2.files import replace_folder

old, new, root = map(Path, sys.argv[1:])
for step in range(1000):
    target = shutil.copytree(old, root / f"run{step}" / "math")
    fresh = shutil.copytree(new, target.with_name(".math.1"))
    pid = os.fork()
    if pid == 0:  # the child: ends before its n-th line of replace_folder or of what that calls
        left = step

        def trace(frame, event, arg):
            global left
            if event == "line" and Path(frame.f_code.co_filename).name in ("files.py", "shutil.py"):
                if left == 0:
                    os._exit(9)
                left -= 1
            return trace

        try:
            sys.settrace(trace)
            replace_folder(fresh, target)
            sys.settrace(None)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    if status == 0:
        break
print(status, step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child at every line")
def test_a_kill_at_any_step_of_a_replacement_leaves_the_old_or_the_new_expert(tmp_path: Path) -> None:
    folders = [save_expert(expert(seed=i), tmp_path / name / "math") for i, name in enumerate(("old", "new"))]
    sums = [read_expert(folder).sha256 for folder in folders]
    # In a process without torch, whose forks are cheap.
    command = [sys.executable, "-c", EACH_LINE, *map(str, folders), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    status, step = map(int, done.stdout.split())
    assert status == 0 and step > 20
    targets = [tmp_path / f"run{i}" / "math" for i in range(step + 1)]
    found = [sums.index(read_expert(target).sha256) for target in targets]
    assert found == sorted(found) and set(found) == {0, 1}  # old, then new
    assert [path.name for path in targets[-1].parent.iterdir()] == ["math"]


def test_a_fault_of_a_replacement_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = save_expert(expert(seed=0), tmp_path / "math")
    before = read_expert(target).sha256
    save_expert(expert(seed=1), target, overwrite=True)
    after = read_expert(target).sha256
    assert before != after and [path.name for path in tmp_path.iterdir()] == ["math"]
    real = os.replace

    def fails(source: Any, destination: Any) -> None:
        if Path(destination) == target and not str(source).endswith(".replaced"):
            raise OSError(5, "Input/output error")
        real(source, destination)

    monkeypatch.setattr(os, "replace", fails)
    assert "Input/output error" in refusal(expert(seed=0), target, overwrite=True, call=save_expert)
    assert read_expert(target).sha256 == after and [path.name for path in tmp_path.iterdir()] == ["math"]


def test_what_cannot_be_an_expert_is_not_saved(tmp_path: Path) -> None:
    assert "nothing to save" in refusal(expert(deltas={}), tmp_path / "x", call=save_expert)
    assert "non-finite" in refusal(expert(deltas={UP: torch.tensor([float("inf")])}), tmp_path / "x", call=save_expert)
    assert "float16" in refusal(expert(deltas={UP: torch.zeros(3).half()}), tmp_path / "x", call=save_expert)
    assert "not a module path" in refusal(expert(deltas={"../x": torch.zeros(3)}), tmp_path / "x", call=save_expert)
    assert list(tmp_path.iterdir()) == []


# Damage


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


GOOD_KEY = f"base_model.model.{UP}.svf_z.delta"


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


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "a/b", "a b", "x" * 65, "math\n"])
def test_names_are_those_of_one_folder(name: str) -> None:
    with pytest.raises(ExpertError, match="name"):
        expert(name)


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


def test_an_expert_of_format_1_loads_and_is_stamped(folder: Path, base_folder: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), transformer2.SVFConfig()).save_pretrained(
        tmp_path / "old"
    )
    edit_config(tmp_path / "old", expert_format_version=1, config_sha256=None)
    old = json.loads((tmp_path / "old" / CONFIG).read_text())
    del old["config_sha256"]
    (tmp_path / "old" / CONFIG).write_text(json.dumps(old))
    before = read_expert(tmp_path / "old")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "old")
    stamp_expert(tmp_path / "old")
    assert read_expert(tmp_path / "old").sha256 == before.sha256
    assert json.loads((tmp_path / "old" / CONFIG).read_text())["expert_format_version"] == 2
    assert "NaN" not in refusal(folder, call=lambda f: (edit_weights(f, **{GOOD_KEY: torch.full((2,), torch.nan)}),
                                                        stamp_expert(f)))  # fmt: skip


def test_an_expert_with_a_form_and_a_start_of_earlier_versions_loads(base_folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    get_peft_model(base, transformer2.SVFConfig()).save_pretrained(tmp_path / "old")
    edit_config(tmp_path / "old", form="merged", init_std=0.0)
    stamp_expert(tmp_path / "old")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "old")
    assert loaded.peft_config["default"].form == "delta" and read_expert(tmp_path / "old").deltas
    fresh = AutoModelForCausalLM.from_pretrained(base_folder)
    assert expert_adapter(tmp_path / "old", {"form": "factored"}, fresh).form == "factored"


def test_saving_by_transformers_over_an_old_expert_is_no_damage(base_folder: Path, tmp_path: Path) -> None:
    """transformers writes the config first: what lay next to it must not be taken for what will."""
    for scale in (0.1, 0.2):
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), transformer2.SVFConfig())
        with torch.no_grad():
            for parameter in (p for p in policy.parameters() if p.requires_grad):
                parameter.fill_(scale)
        policy.save_pretrained(tmp_path / str(scale))
        model.load_adapter(str(tmp_path / str(scale)))
        model.save_pretrained(tmp_path / "mine")
        assert all(bool((d == scale).all()) for d in read_expert(tmp_path / "mine").deltas.values())


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


@pytest.mark.parametrize("place", ["my experts/mäth", "~/é", "a\tb\x1b[2J", "x" * 100, "..."])
def test_any_folder_can_hold_an_expert(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    target = place if place.startswith("~") else str(tmp_path / place)
    folder = save_expert(expert(), target)
    assert folder == Path(os.path.expanduser(target)) and torch.equal(
        read_expert(target).deltas[UP], expert().deltas[UP]
    )
    assert read_expert(target).name and load_experts([target])[0].path == folder
    assert main(["experts", "show", target]) == 0
    assert main(["experts", "mix", target, "--weights", "1", "--out", f"{target} mix"]) == 0
    assert read_expert(f"{target} mix").task is None


# Several


def test_experts_that_do_not_fit_are_refused_and_both_named(tmp_path: Path) -> None:
    save_expert(expert("math"), tmp_path / "math")
    others = {
        "other_set": {"deltas": {UP: torch.zeros(12)}},
        "other_length": {"deltas": {UP: torch.zeros(12), DOWN: torch.zeros(8)}},
        "other_arch": {"base_fingerprint": "cccc:bbbb"},
    }
    for name, changes in others.items():
        save_expert(expert(name, **changes), tmp_path / name)
        message = refusal([tmp_path / "math", tmp_path / name], call=load_experts)
        assert "'math'" in message and f"'{name}'" in message
    assert "two experts are called 'math'" in refusal([tmp_path / "math"] * 2, call=load_experts)
    assert "no experts" in refusal([], call=load_experts)
    save_expert(expert("bf16", base_fingerprint="aaaa:dddd"), tmp_path / "bf16")
    with pytest.warns(UserWarning, match="different weights"):
        assert len(load_experts([tmp_path / "math", tmp_path / "bf16"])) == 2


def test_mixing_is_the_formula() -> None:
    a, b = expert("a", seed=1), expert("b", seed=2)
    delta = mix_experts([a, b], [0.7, 0.5]).deltas[UP]
    torch.testing.assert_close(delta, 0.7 * a.deltas[UP] + 0.5 * b.deltas[UP])
    normalised = mix_experts([a, b], [3, 1], mix="normalised").deltas[UP]
    torch.testing.assert_close(normalised, 0.75 * a.deltas[UP] + 0.25 * b.deltas[UP])
    raw = mix_experts([a, b], [0.7, 0.5], mix="raw").deltas[UP]
    torch.testing.assert_close(raw + 1, 0.7 * (1 + a.deltas[UP]) + 0.5 * (1 + b.deltas[UP]))
    assert not mix_experts([a, b], [0, 0]).deltas[UP].any()  # zeros are the base model
    for weights, mix in (([1], "delta"), ([1, float("nan")], "delta"), ([1, -1], "normalised"), ([1, 1], "sum")):
        with pytest.raises(UserError):
            mix_experts([a, b], weights, mix=mix)  # type: ignore[arg-type]


def test_mix_folders_writes_an_expert(tmp_path: Path) -> None:
    paths = [save_expert(expert(n, seed=i), tmp_path / n) for i, n in enumerate("ab")]
    text = mix_folders(paths, [0.7, 0.7], tmp_path / "both")
    assert "0.7 a + 0.7 b" in text and "2 matrices" in text
    both = read_expert(tmp_path / "both")
    assert both.base_fingerprint == "aaaa:bbbb" and both.task is None
    assert torch.equal(both.deltas[UP], mix_experts(load_experts(paths), [0.7, 0.7]).deltas[UP])


@pytest.mark.parametrize("way", ["experts mix", "adapt", "add_weighted_adapter"])
@pytest.mark.parametrize(
    ("fact", "values", "expected", "said"),
    [
        ("base_quantisation", ("nf4", "nf4"), "nf4", None),
        ("base_quantisation", (None, "nf4"), "nf4 and unquantised", None),
        ("base_quantisation", ("nf4 and unquantised", "int8"), "int8 and nf4 and unquantised", None),
        ("revision", ("v1", "v1"), "v1", None),
        ("revision", ("v1", "v2"), "v1", "several revisions of a base (v1, v2) names the first"),
        ("shuffled", (0, 0), 0, None),
        ("shuffled", (None, 3), 3, "marked as shuffled (seed 3)"),
        ("base_fingerprint", ("aaaa:bbbb", "aaaa:bbbb"), "aaaa:bbbb", None),
        ("base_fingerprint", ("aaaa:bbbb", "aaaa:dddd"), None, None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(different weights of|trained )")
def test_a_mixture_says_where_it_comes_from(way, fact, values, expected, said, base_folder, tmp_path) -> None:
    deltas = {UP: torch.zeros(32)}
    parts = [expert(name, **{"deltas": deltas, fact: value}) for name, value in zip("ab", values, strict=True)]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if way == "experts mix":
            mix_folders([save_expert(e, tmp_path / e.name) for e in parts], [0.7, 0.7], tmp_path / "both")
            mixed = getattr(read_expert(tmp_path / "both"), fact)
        elif way == "adapt":
            mixed = getattr(Mixture([UP], ["a", "b"]).expert(torch.tensor([0.4, 0.9]), parts, "both"), fact)
        else:
            a, b = (save_expert(e, tmp_path / e.name) for e in parts)
            policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), a, "a")
            policy.load_adapter(b, "b")
            policy.base_model.add_weighted_adapter(["a", "b"], [0.7, 0.7], "both")
            mixed = getattr(policy.peft_config["both"], fact)
    notes = [str(w.message) for w in warned if "a mixture" in str(w.message)]
    assert mixed == expected and len(notes) == (said is not None) and all(said in note for note in notes)


def test_comparison_figures() -> None:
    a = expert("a", deltas={UP: torch.tensor([0.3, 0.0, 0.0]), DOWN: torch.tensor([0.0, 0.4, 0.0])})
    b = expert("b", deltas={UP: torch.tensor([0.6, 0.0, 0.0]), DOWN: torch.tensor([0.0, -0.4, 0.0])})
    zero = expert("zero", deltas={UP: torch.zeros(3), DOWN: torch.zeros(3)})
    figures = compare_experts([a, b, zero])
    assert figures.cosine["a", "b"]["mlp.up_proj"] == pytest.approx(1)
    assert figures.cosine["a", "b"]["mlp.down_proj"] == pytest.approx(-1)
    assert figures.cosine["a", "b"]["all"] == pytest.approx((0.18 - 0.16) / (0.5 * 0.52**0.5))
    assert figures.cosine["a", "zero"]["all"] != figures.cosine["a", "zero"]["all"]  # NaN
    assert figures.rms["a"]["all"] == pytest.approx((0.25 / 6) ** 0.5)
    assert figures.drift["a"] == pytest.approx(((0.09 / 2) ** 0.5, (0.16 / 2) ** 0.5, 0))
    text = str(figures)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.split("\n\n")[1].splitlines()}
    assert [float(row[0]) for name, row in rows.items() if name in figures.rms["a"]][:2] == [1.0, -1.0], text
    assert "a · b" in text and "top third" in text
    many = [replace(a, name=f"an_expert_of_a_long_name_{i}") for i in range(7)]
    assert max(map(len, str(compare_experts(many)).splitlines())) <= 100


def test_show_names_the_facts(folder: Path) -> None:
    text = show_expert(folder)
    for fact in ("math", "gsm8k", "75.0 %", "some/base", "aaaa:bbbb", "mlp.up_proj", read_expert(folder).sha256 or "?"):
        assert fact in text


# Reference checkpoints


def test_reference_checkpoints_compose_the_reference_weights(base_folder: Path, tmp_path: Path) -> None:
    """Both layouts give the very W' of the published formula, and load through PEFT."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    weights = {k: v for k, v in base.state_dict().items() if "mlp" in k}
    params = {k: nn.Parameter((torch.randn(min(v.shape)) * 0.3 + 0.1).bfloat16()) for k, v in weights.items()}
    torch.save(params, tmp_path / "learnable_params.pt")
    torch.save(nn.ParameterDict({}).state_dict() | {
        f"learnable_params_module_list.{i}": p.detach() for i, p in enumerate(params.values())
    }, tmp_path / "policy_params.pt")  # fmt: skip

    named, positional = (
        import_reference_checkpoint(tmp_path / f"{n}_params.pt", base_folder, tmp_path / "cache", progress=False)
        for n in ("learnable", "policy")
    )
    assert named.name == "learnable_params" and named.base_fingerprint == fingerprint(base)
    assert all(torch.equal(named.deltas[m], positional.deltas[m]) for m in named.deltas)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), save_expert(named, tmp_path / "imported")
    ).merge_and_unload()
    for name, weight in weights.items():
        u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        m = torch.sigmoid(params[name].detach().double())
        expected = (u * (s * m)) @ vh * (s.sum() / (s * m).sum())
        torch.testing.assert_close(loaded.state_dict()[name].double(), expected, atol=2e-6, rtol=1e-4)


def test_strange_reference_files_are_refused(base_folder: Path, tmp_path: Path) -> None:
    def refused(content: Any) -> str:
        torch.save(content, tmp_path / "x.pt")
        return refusal(
            tmp_path / "x.pt", base_folder, tmp_path / "cache", call=import_reference_checkpoint, progress=False
        )

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/owned",)

    assert "not a plain file of tensors" in refused(Evil())
    assert not (tmp_path / "owned").exists()
    assert "holds a list" in refused([1])
    assert "mixture" in refused({"adaptive_weights": torch.zeros(2)})
    assert "1 vectors, the base model 6" in refused({"learnable_params_module_list.0": torch.zeros(32)})
    assert "'other.weight'" in refused({"other.weight": torch.zeros(32)})
    up = "model.layers.0.mlp.up_proj.weight"
    assert "not a vector" in refused({up: torch.zeros(3, 3)})
    assert "non-finite" in refused({up: torch.full((32,), float("nan"))})
    assert "the base model's weight needs (32,)" in refused({up: torch.zeros(31)})
    (tmp_path / "x.pt").write_bytes(b"PK garbage")
    assert "not a plain file" in refusal(tmp_path / "x.pt", base_folder, call=import_reference_checkpoint)
    assert "missing" in refusal(tmp_path / "y.pt", base_folder, call=import_reference_checkpoint)


def test_importing_experts_needs_no_heavy_package() -> None:
    code = "import sys, transformer2.experts; sys.exit(bool({'lightning', 'peft', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
