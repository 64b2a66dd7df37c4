"""`dtype: auto` is one rule: for the model, its files, its bases and its fingerprint."""

import logging
from pathlib import Path

import pytest
import torch
from fakes import make_llama
from transformers import AutoModelForCausalLM

from transformer2.policy import base_dtype, load_base
from transformer2.svf import dtype as rule
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.fingerprint import fingerprint, fingerprint_checkpoint

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="about CPUs")


def stored(tmp_path: Path, dtype: torch.dtype) -> str:
    folder = make_llama(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
def test_auto_on_a_cpu(
    kept: torch.dtype, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rule, "_fast_bf16", lambda: fast)
    caplog.set_level(logging.INFO, "transformer2")
    base = stored(tmp_path, kept)
    expected = torch.bfloat16 if fast and kept != torch.float32 else torch.float32
    model = load_base(base)
    assert (
        {p.dtype for p in model.parameters()} == {expected} == {base_dtype(base), LocalCheckpoint.of_base(base).dtype}
    )
    assert fingerprint(model) == fingerprint_checkpoint(LocalCheckpoint.of_base(base))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (kept != torch.float32)
    assert all(base in line and str(expected).removeprefix("torch.") in line for line in said)
    caplog.clear()
    assert load_base(base, "float16").dtype == torch.float16 and not caplog.records


def test_this_machine_is_asked() -> None:
    flags = Path("/proc/cpuinfo")
    words = flags.read_text().split() if flags.is_file() else []
    assert rule._fast_bf16() == ("avx512_bf16" in words or "amx_bf16" in words)
