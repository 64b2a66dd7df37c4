"""The best expert as a folder: whole or absent."""

from types import SimpleNamespace

import pytest

from transformer2.callbacks import expert_checkpoint
from transformer2.callbacks.expert_checkpoint import ExpertCheckpoint


def test_a_save_that_fails_leaves_the_expert_before_and_nothing_beside_it(tmp_path, monkeypatch):
    def save_pretrained(folder, **options):
        (folder / "adapter_model.safetensors").write_text("new")

    def no_room(folder, rows):
        raise OSError(28, "No space left on device")

    policy = SimpleNamespace(peft_config={"default": object()}, save_pretrained=save_pretrained)
    module = SimpleNamespace(policy=policy, task=SimpleNamespace(name="tiny_math"))
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "adapter_model.safetensors").write_text("old")
    monkeypatch.setattr(expert_checkpoint, "seal_adapter", no_room)
    with pytest.raises(OSError, match="No space left"):
        ExpertCheckpoint()._save(SimpleNamespace(default_root_dir=tmp_path), module)
    assert [path.name for path in tmp_path.iterdir()] == ["expert"]
    assert (tmp_path / "expert" / "adapter_model.safetensors").read_text() == "old"
