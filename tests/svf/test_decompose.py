"""`transformer2 decompose`: the cache it leaves is what SVF would compute, and it survives interruption and damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config

from transformer2 import SVFConfig
from transformer2.errors import BasisError, ConfigError, UserError
from transformer2.policy import load_base
from transformer2.svf import decompose as module
from transformer2.svf.basis import Basis, basis_error, compute_basis
from transformer2.svf.cache import BasisCache
from transformer2.svf.decompose import decompose, spectra
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.layer import svf_layers


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama") / "base"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2  # really sharded
    return folder


def test_the_cache_serves_the_loaded_model(llama: Path, tmp_path: Path) -> None:
    report = decompose(llama, cache_dir=tmp_path, progress=False)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    assert report["fingerprint"] == fingerprint(model)
    assert (report["matrices"], report["built"], report["reused"], report["quarantined"]) == (9, 9, 0, 0)
    assert report["bytes"] == sum(f.stat().st_size for f in Path(report["folder"]).glob("*.safetensors"))

    cache = BasisCache(tmp_path, fingerprint(model))
    for name, linear in model.named_modules():
        if name.endswith(("up_proj", "down_proj", "gate_proj")):
            basis = cache.get(name, lambda: pytest.fail("not in the cache"))  # type: ignore[arg-type]
            assert torch.equal(basis.vectors_RR, compute_basis(linear.weight).vectors_RR)


def test_dtype_layers_and_attention_select_other_entries(llama: Path, tmp_path: Path) -> None:
    report = decompose(llama, "attention", layers_to_transform=[1], cache_dir=tmp_path, dtype="float32", progress=False)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    assert report["fingerprint"] == fingerprint(model) and report["matrices"] == 4
    assert {f.name.rsplit("-", 1)[0] for f in Path(report["folder"]).glob("*.safetensors")} == {
        f"model.layers.1.self_attn.{p}_proj" for p in "qkvo"
    }


def test_an_interrupted_run_resumes_where_it_was(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module.LocalCheckpoint.matrix, []

    def matrix(self: Any, module: str) -> torch.Tensor:
        calls.append(module)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, module)

    monkeypatch.setattr(module.LocalCheckpoint, "matrix", matrix)
    with pytest.raises(KeyboardInterrupt):
        decompose(llama, cache_dir=tmp_path, progress=False)
    report = decompose(llama, cache_dir=tmp_path, progress=False)
    assert (report["built"], report["reused"]) == (5, 4)


def test_a_damaged_entry_is_set_aside_and_rebuilt(llama: Path, tmp_path: Path) -> None:
    first = decompose(llama, cache_dir=tmp_path, progress=False)
    victim = sorted(Path(first["folder"]).glob("*.safetensors"))[3]
    good = victim.read_bytes()
    victim.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with pytest.warns(UserWarning, match="damaged basis .* rebuilt"):
        again = decompose(llama, cache_dir=tmp_path, progress=False)
    assert (again["built"], again["reused"], again["quarantined"]) == (1, 8, 1)
    assert victim.read_bytes() == good


def test_transposed_layers_are_read_as_the_tuner_reads_them(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=16)
    model = AutoModelForCausalLM.from_config(config)
    # The bare backbone, as the original GPT-2 checkpoint has it: no "transformer." in its keys.
    model.transformer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_text(
        json.dumps(model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]})
    )
    decompose(tmp_path / "gpt2", cache_dir=tmp_path / "cache", progress=False)
    cache = BasisCache(tmp_path / "cache", fingerprint(model))
    basis = cache.get("transformer.h.0.mlp.c_fc", lambda: pytest.fail("not in the cache"))  # type: ignore[arg-type]
    assert basis.side == "in" and basis.sigma_R.shape == (32,)  # (out, in) = (128, 32)


def test_fused_layers_are_read_as_the_tuner_reads_them(tmp_path: Path) -> None:
    config = Phi3Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "phi")
    decompose(tmp_path / "phi", "all-linear", cache_dir=tmp_path / "cache", progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "phi")
    cache = BasisCache(tmp_path / "cache", fingerprint(model))
    for name in ("self_attn.qkv_proj", "mlp.gate_up_proj"):
        basis = cache.get(f"model.layers.0.{name}", lambda: pytest.fail("not in the cache"))  # type: ignore[arg-type]
        expected = compute_basis(model.get_submodule(f"model.layers.0.{name}").weight)
        assert torch.equal(basis.vectors_RR, expected.vectors_RR)


def test_processes_share_the_matrices_evenly(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        reports.append(decompose(llama, "all-linear", cache_dir=tmp_path, progress=False))
    monkeypatch.undo()
    assert sum(r["built"] for r in reports) == 21 and all(r["matrices"] in range(3, 9) for r in reports)
    whole = decompose(llama, "all-linear", cache_dir=tmp_path, progress=False)
    assert (whole["matrices"], whole["built"], whole["reused"]) == (21, 0, 21)


@pytest.mark.slow
def test_many_writers_end_with_one_good_cache(llama: Path, tmp_path: Path) -> None:
    """Ranks as torchrun starts them, one rank twice and one process that takes everything, all at once."""
    command = [sys.executable, "-m", "transformer2", "decompose", "--model.base", str(llama), "--quiet"]
    command.append("--model.adapter.basis_cache")
    environments = [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {},
    ]
    started = [
        subprocess.Popen([*command, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1", **own})
        for own in environments
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0, 0, 0]
    report = decompose(llama, cache_dir=tmp_path, progress=False)
    assert (report["built"], report["reused"], report["quarantined"]) == (0, 9, 0)
    files = [path.name for path in Path(report["folder"]).iterdir() if path.suffix != ".lock"]
    assert len(files) == 9 and all(name.endswith(".safetensors") for name in files)


def test_the_model_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        hidden_size=128, intermediate_size=320, num_hidden_layers=24, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="300KB")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from _common import peak_bytes

    peak = peak_bytes(lambda: decompose(tmp_path / "base", cache_dir=tmp_path / "cache", progress=False))
    # One 320 x 128 matrix in fp32 and fp64 with its Gram matrix and eigenvectors, and one mapped shard.
    assert peak < size / 10, (peak, size)


def test_impossible_requests_are_one_line(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(UserError) as e:
            decompose(*args, cache_dir=tmp_path / "cache", progress=False, **kwargs)
        assert "\n" not in str(e.value)
        return str(e.value)

    assert "no_such" in fails(tmp_path / "no_such")
    assert "config.json" in fails(tmp_path)
    assert "float33" in fails(llama, dtype="float33")
    assert "up_porj" in fails(llama, ["up_porj"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "local folder" in fails("nobody/nothing")


def test_damaged_checkpoints_are_named(llama: Path, tmp_path: Path) -> None:
    index = json.loads((llama / "model.safetensors.index.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    shard = index["weight_map"][name]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in llama.iterdir():
        if file.name != shard:
            (broken / file.name).symlink_to(file)
    with pytest.raises(BasisError, match=shard):
        decompose(broken, cache_dir=tmp_path / "cache", progress=False)
    (broken / shard).write_bytes((llama / shard).read_bytes()[:1000])
    with pytest.raises(BasisError, match=shard):
        decompose(broken, cache_dir=tmp_path / "cache", progress=False)
    tensors = load_file(llama / shard)
    tensors[name][3, 3] = float("nan")
    save_file(tensors, broken / shard)
    with pytest.raises(BasisError, match=r"model\.layers\.1\.mlp\.up_proj: .*1 non-finite"):
        decompose(broken, cache_dir=tmp_path / "cache", progress=False)
    tensors["renamed"] = tensors.pop(name)
    save_file(tensors, broken / shard)
    index["weight_map"]["renamed"] = index["weight_map"].pop(name)
    (broken / "model.safetensors.index.json").unlink()
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BasisError, match=r"no tensor for 'model\.layers\.1\.mlp\.up_proj"):
        decompose(broken, cache_dir=tmp_path / "cache", progress=False)


def test_config_errors_are_typed(llama: Path) -> None:
    with pytest.raises(ConfigError):
        decompose(llama, "lm_head", progress=False)


_TEXT = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, max_position_embeddings=256,
)  # fmt: skip


def _qwen3_5():
    linear = dict(
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32, num_position_embeddings=16
    )
    ids = dict(image_token_id=290, video_token_id=291, vision_start_token_id=292, vision_end_token_id=293)
    return tf.Qwen3_5ForConditionalGeneration(tf.Qwen3_5Config(text_config=_TEXT | linear, vision_config=vision, **ids))


def _gemma3():
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    ids = dict(image_token_index=290, boi_token_index=291, eoi_token_index=292, mm_tokens_per_image=4)
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=_TEXT, vision_config=vision, **ids))


@pytest.mark.parametrize("make", [_qwen3_5, _gemma3])
def test_a_checkpoint_of_several_modalities_is_decomposed_as_the_model_that_asks(make, tmp_path):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    built = decompose(tmp_path / "base", "all-linear", cache_dir=tmp_path / "cache", progress=False)
    base = load_base(str(tmp_path / "base"))
    assert built["fingerprint"] == fingerprint(base)
    policy = get_peft_model(base, SVFConfig(target_modules="all-linear", basis_cache=str(tmp_path / "cache")))
    layers = svf_layers(policy)
    assert len(layers) == built["matrices"] == policy.base_model._bases.cache.counts["reused"] > 10
    for name, layer in layers:
        assert basis_error(Basis(layer.side, layer.svf_basis.data, layer._sigma_R), layer.weight_mn())[1] < 1e-3, name


def test_spectra_are_the_singular_values_of_what_would_be_tuned(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    found = spectra(llama, progress=False)
    assert found.fingerprint == fingerprint(model)
    for name, sigma_R in found.values:
        expected_R = torch.linalg.svdvals(model.get_submodule(name).weight.detach().double())
        assert torch.allclose(sigma_R, expected_R, atol=1e-7 * float(expected_R[0]), rtol=0)
    assert len(found.names) == 21 and len(spectra(llama, "mlp", layers_to_transform=1, progress=False).names) == 3
