"""A GGUF file is a base like any other: the same model as the folder it was made from, or one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import make_llama
from gguf_files import write_gguf

from transformer2.errors import DataError, UserError
from transformer2.export import export_merged
from transformer2.policy import base_dtype, build_policy, load_base, load_config, load_tokenizer
from transformer2.svf.base_folder import base_folder
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.fingerprint import fingerprint, fingerprint_checkpoint

pytestmark = pytest.mark.real
IDS = torch.arange(6, 46).view(2, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"), init=0.2, hidden=64)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(folder, tmp_path_factory.mktemp("gguf") / "model.gguf")


@torch.no_grad()
def test_it_is_the_model_it_was_made_from(folder: Path, file: Path) -> None:
    ours, theirs = load_base(str(file)), load_base(str(folder))
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    assert fingerprint(ours) == fingerprint(theirs) == fingerprint_checkpoint(LocalCheckpoint.of_base(str(file)))
    mine, other = load_tokenizer(str(file)), load_tokenizer(str(folder))
    chat = [{"role": "user", "content": "Add 12 to  34,\n\tplease."}]
    assert mine.apply_chat_template(chat) == other.apply_chat_template(chat)
    assert mine.eos_token == other.eos_token and mine.padding_side == "left"


def test_the_content_counts_and_not_the_path(
    folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "another name.GGUF"
    shutil.copy(file, copy)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    monkeypatch.setenv("TRANSFORMER2_CACHE", str(tmp_path / "cache"))
    assert "another" not in load_tokenizer(str(copy)).chat_template
    assert load_base(str(copy)).generation_config.eos_token_id == 4
    assert base_folder(copy) == base_folder(file)
    other = write_gguf(make_llama(tmp_path / "other", seed=1, hidden=64), tmp_path / "model.gguf")
    packed = write_gguf(folder, tmp_path / "packed.gguf", "Q8_0")
    assert len({fingerprint(load_base(str(f), "float32")) for f in (file, copy, other, packed)}) == 3
    shutil.copy(other, copy)  # in the same place
    assert base_folder(copy) == base_folder(other)


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("Q8_0", "bfloat16")])
def test_values_are_kept_exactly_and_auto_knows_how_they_were_stored(
    folder: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    import gguf

    file = str(write_gguf(folder, tmp_path / "model.gguf", kind))
    assert str(load_config(file).dtype) == f"torch.{dtype}"
    reader = gguf.GGUFReader(file)
    packed = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    expected = torch.tensor(gguf.quants.dequantize(packed.data, packed.tensor_type))
    assert torch.equal(load_base(file, "float32").model.layers[1].mlp.down_proj.weight, expected)
    model = load_base(file)
    assert model.dtype == base_dtype(file) == LocalCheckpoint.of_base(file).dtype
    assert fingerprint(model) == fingerprint_checkpoint(LocalCheckpoint.of_base(file))


def test_it_is_merged_and_exported(file: Path, tmp_path: Path) -> None:
    policy = build_policy(load_base(str(file)), {"target_modules": "all-linear"})
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.1)
        expected = policy(IDS).logits
        out = export_merged(policy, load_tokenizer(str(file)), tmp_path / "out")
        torch.testing.assert_close(load_base(str(out))(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [6, 500, 20_000, -4096, -32])
def test_a_file_that_is_cut_off_is_refused(file: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut\.gguf' is cut off or damaged .*download it again"):
        load_base(str(cut))
    with pytest.raises(DataError, match="download it again"):
        load_tokenizer(str(cut))
    assert not [p for p in base_folder(file).parent.iterdir() if p.name.startswith(".")]


def test_what_transformers_does_not_read_is_refused(folder: Path, tmp_path: Path) -> None:
    strange = write_gguf(folder, tmp_path / "strange.gguf", arch="rwkv6")
    with pytest.raises(UserError, match=r"transformers cannot read this GGUF file .*rwkv6.*give the folder"):
        load_base(str(strange))
    scaled = write_gguf(folder, tmp_path / "scaled.gguf", rope_freqs=True)
    with pytest.raises(DataError, match="scales its rotary frequencies"):
        load_base(str(scaled))


def test_processes_unpack_it_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMER2_CACHE", str(tmp_path))
    code = f"from transformer2.svf.base_folder import base_folder; print(base_folder({str(file)!r}))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate()[0].splitlines()[-1] for process in running}
    assert len(folders) == 1 and all(process.returncode == 0 for process in running)
    assert sorted(p.suffix for p in (tmp_path / "gguf").iterdir() if p.is_file()) == [".lock"]
    assert (Path(folders.pop()) / "model.safetensors").is_file()
