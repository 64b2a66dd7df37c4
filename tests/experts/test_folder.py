"""Expert folders: saved whole or not at all, read back exactly, by PEFT too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_folders import CONFIG, DOWN, GOOD_KEY, UP, WEIGHTS, edit_config, edit_weights, expert, refusal
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import transformer2
from transformer2.adapters import expert_adapter
from transformer2.cli import main
from transformer2.errors import ExpertError
from transformer2.experts import load_experts, read_expert, save_expert, stamp_expert
from transformer2.svf.fingerprint import fingerprint


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


def test_an_expert_in_the_working_directory_is_read_as_any_other(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert PeftConfig.from_pretrained(".").peft_type == "SVF"
    for verb in ("stamp", "show"):
        assert main(["experts", verb, "."]) == 0
        assert main(["experts", verb, "/"]) == 2 and CONFIG in capsys.readouterr().err
    for one in (".", folder):
        assert [e.name for e in load_experts(one)] == ["math"]


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


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "a/b", "a b", "x" * 65, "math\n"])
def test_names_are_those_of_one_folder(name: str) -> None:
    with pytest.raises(ExpertError, match="name"):
        expert(name)


def test_an_expert_of_format_1_loads_and_is_stamped(folder: Path, base_folder: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), transformer2.SVFConfig()).save_pretrained(
        tmp_path / "old"
    )
    old = json.loads((tmp_path / "old" / CONFIG).read_text())
    del old["config_sha256"], old["expert_format_version"]  # absent is the first, too
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


def test_importing_experts_needs_no_heavy_package() -> None:
    code = "import sys, transformer2.experts; sys.exit(bool({'lightning', 'peft', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
