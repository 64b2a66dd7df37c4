"""Expert folders: read, refuse, mix, compare, save for PEFT, import; damage never passes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import transformer2
from transformer2.errors import ExpertError, UserError
from transformer2.experts import (
    Expert,
    compare_experts,
    expert_folder,
    import_reference_checkpoint,
    load_experts,
    mix_experts,
    mix_folders,
    read_expert,
    replace_folder,
    save_expert,
    show_expert,
)  # fmt: skip
from transformer2.experts import folder as expert_files
from transformer2.svf.cache import fingerprint

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere two renames have to do")
def test_a_kill_at_any_step_of_a_replacement_leaves_the_old_or_the_new_expert(tmp_path: Path) -> None:
    old, new = expert(seed=0), expert(seed=1)
    probes = [save_expert(expert(name), tmp_path / name) for name in ("a", "b")]
    if not expert_files._exchange(*probes):
        pytest.skip("this file system cannot exchange two names")
    sums = [read_expert(save_expert(e, tmp_path / f"sum{i}")).sha256 for i, e in enumerate((old, new))]
    found = []
    for step in range(1000):
        target = save_expert(old, tmp_path / f"run{step}" / "math")
        fresh = save_expert(new, target.with_name(".math.1"))
        pid = os.fork()
        if pid == 0:  # the child: ends before its n-th line of replace_folder or of what that calls
            left = step

            def trace(frame: Any, event: str, arg: Any) -> Any:
                nonlocal left
                if event == "line" and Path(frame.f_code.co_filename).name in ("folder.py", "shutil.py"):
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
        found.append(sums.index(read_expert(target).sha256))
        if status == 0:
            break
    assert status == 0 and step > 20
    assert found == sorted(found) and set(found) == {0, 1}  # old, then new
    assert [path.name for path in target.parent.iterdir()] == ["math"]


def test_without_an_exchange_two_renames_replace_and_a_fault_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_files, "_exchange", lambda a, b: False)
    target = save_expert(expert(seed=0), tmp_path / "math")
    before = read_expert(target).sha256
    save_expert(expert(seed=1), target, overwrite=True)
    after = read_expert(target).sha256
    assert before != after and [path.name for path in tmp_path.iterdir()] == ["math"]
    real = os.replace

    def fails(source: Any, destination: Any) -> None:
        if Path(destination) == target and not str(source).endswith(".old"):
            raise OSError(5, "Input/output error")
        real(source, destination)

    monkeypatch.setattr(os, "replace", fails)
    assert "Input/output error" in refusal(expert(seed=0), target, overwrite=True, call=save_expert)
    assert read_expert(target).sha256 == after and [path.name for path in tmp_path.iterdir()] == ["math"]


def test_what_cannot_be_an_expert_is_not_saved(tmp_path: Path) -> None:
    assert "nothing to save" in refusal(expert(deltas={}), tmp_path / "x", call=save_expert)
    assert "non-finite" in refusal(expert(deltas={UP: torch.tensor([float("inf")])}), tmp_path / "x", call=save_expert)
    assert "float16" in refusal(expert(deltas={UP: torch.zeros(3).half()}), tmp_path / "x", call=save_expert)
    assert "no module path" in refusal(expert(deltas={"../x": torch.zeros(3)}), tmp_path / "x", call=save_expert)
    assert list(tmp_path.iterdir()) == []


# Damage


def test_files_that_are_missing_or_foreign(folder: Path, tmp_path: Path) -> None:
    assert "is no folder" in refusal(tmp_path / "nowhere")
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
        ("base_model.model.../../x.svf_z.delta", torch.zeros(3), "no SVF expert"),
        ("base_model.model.a/b.svf_z.delta", torch.zeros(3), "no SVF expert"),
        (GOOD_KEY + "\n", torch.zeros(3), "no SVF expert"),
        (GOOD_KEY.replace("delta", "logit"), torch.zeros(3), "no SVF expert"),
        ("base_model.model.lm_head.weight", torch.zeros(3), "no SVF expert"),
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


def test_names_stay_inside_their_root(tmp_path: Path) -> None:
    (tmp_path / "root" / "good").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    assert expert_folder(tmp_path / "root", "good") == (tmp_path / "root" / "good").resolve()
    for name in ("..", ".", "", "../outside", "a/b", "a b", "x" * 65, "math\n", "link"):
        refusal(tmp_path / "root", name, call=expert_folder)
    with pytest.raises(ExpertError, match="name"):
        expert("../x")


def test_no_damage_passes(folder: Path) -> None:
    """Byte flips and truncations of both files: success or a typed error, and a flip of the weights is always seen."""
    rng = random.Random(0)
    good = {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    outcomes = {"refused": 0, "read": 0}
    for name, data in good.items():
        for _ in range(400):
            position = rng.randrange(len(data))
            cut = rng.random() < 0.2
            damaged = data[:position] if cut else bytearray(data)
            if not cut:
                damaged[position] ^= rng.randrange(1, 256)  # type: ignore[index]
            (folder / name).write_bytes(damaged)
            try:
                read_expert(folder)
                outcomes["read"] += 1
                assert name == CONFIG, f"damage of byte {position} passed"
            except ExpertError as e:
                outcomes["refused"] += 1
                assert "\n" not in str(e)
        (folder / name).write_bytes(data)
    assert outcomes["refused"] > 400 and outcomes["read"] > 0
    # Without a checksum the parser stands alone: still nothing but ExpertError.
    edit_config(folder, sha256=None)
    for _ in range(300):
        damaged = bytearray(good[WEIGHTS])
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(min(len(damaged), 300))] ^= rng.randrange(1, 256)
        (folder / WEIGHTS).write_bytes(damaged)
        try:
            read_expert(folder)
        except ExpertError as e:
            assert "\n" not in str(e)


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
    assert "| a · b | +1.000 | -1.000 |" in text and "top third" in text


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
    assert "no vector" in refused({up: torch.zeros(3, 3)})
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
