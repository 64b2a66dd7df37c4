"""A GGUF export holds the merged matrices, and of all else the base's own bytes; and it is whole or absent."""

import pytest
import torch
from fake_experts import make_experts
from fakes import make_llama

gguf = pytest.importorskip("gguf")

from gguf_files import write_gguf  # noqa: E402

from transformer2.cli import main  # noqa: E402
from transformer2.errors import UserError  # noqa: E402
from transformer2.export_gguf import export_gguf  # noqa: E402
from transformer2.policy import build_policy, load_base  # noqa: E402
from transformer2.svf.layer import tuned_layers  # noqa: E402

IDS = torch.arange(5, 25).view(2, 10)
MLP = {"target_modules": "mlp"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_llama(tmp_path_factory.mktemp("llama"), init=0.25, hidden=64)
    return write_gguf(folder, folder / "base.gguf", "Q8_0")


def moved(base, adapter, dtype="float32"):
    policy = build_policy(load_base(str(base), dtype), adapter)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def tensors(file):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("adapter", [{"target_modules": "all-linear"}, {**MLP, "layers_to_transform": [1]}])
def test_what_is_tuned_is_merged_and_the_rest_is_copied(base, tmp_path, kind, adapter):
    policy = moved(base, adapter)
    out = export_gguf(policy, base, tmp_path / "new" / "out.gguf", kind)
    theirs, ours = tensors(base), tensors(out)
    assert list(theirs) == list(ours)
    changed = {name for name in ours if ours[name].data.tobytes() != theirs[name].data.tobytes()}
    assert len(changed) == len(tuned_layers(policy)) and {ours[name].tensor_type.name for name in changed} == {kind}
    assert all(ours[name].tensor_type == theirs[name].tensor_type for name in ours.keys() - changed)
    before, after = gguf.GGUFReader(base).fields, gguf.GGUFReader(out).fields
    own = {"GGUF.kv_count", "general.file_type", "general.quantization_version"}
    assert before.keys() - own == after.keys() - own
    assert all(before[key].contents() == after[key].contents() for key in before.keys() - own)
    exported = load_base(str(out), "float32")
    policy.merge_adapter()
    for path, layer in tuned_layers(policy).items():
        merged_mn, stored_mn = layer.base_layer.weight, exported.get_submodule(path).weight
        if kind == "F16":
            assert torch.equal(stored_mn, merged_mn.half().float())
        else:  # half a step of 127, and its scale in F16
            torch.testing.assert_close(stored_mn, merged_mn, rtol=0, atol=float(merged_mn.abs().max()) / 240)
    torch.testing.assert_close(exported(IDS).logits, policy(IDS).logits, rtol=0, atol=0.02 if kind == "F16" else 0.5)


def test_w_is_the_files_own_whatever_the_policy_is_loaded_in(base, tmp_path):
    """At z = 1, W in F16 as the file holds it, and not as the policy rounded it to bf16."""
    policy = build_policy(load_base(str(base), "bfloat16"), MLP)
    theirs, ours = tensors(base), tensors(export_gguf(policy, base, tmp_path / "out.gguf"))
    merged = [name for name in ours if ".ffn_" in name and "norm" not in name]
    assert len(merged) == len(tuned_layers(policy))
    for name in merged:
        stored = gguf.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert (ours[name].data == stored.astype("float16")).all()


def test_what_cannot_be_written_is_refused_in_one_line_and_leaves_nothing(base, tmp_path):
    policy, out = moved(base, MLP), tmp_path / "out.gguf"
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"there\.gguf exists; name a new file"):
        export_gguf(policy, base, tmp_path / "there.gguf")
    other = write_gguf(make_llama(tmp_path / "other", seed=1, init=0.25, hidden=64), tmp_path / "other.gguf", "Q8_0")
    with pytest.raises(UserError, match=r"blk\.0\.ffn_.* is not the base model's matrix"):
        export_gguf(policy, other, out)
    lora = build_policy(load_base(str(base)), {"peft_type": "LORA", "r": 2, "target_modules": ["up_proj"]})
    with pytest.raises(UserError, match="z alone; export with --format hf"):
        export_gguf(lora, base, out)
    narrow = write_gguf(make_llama(tmp_path / "narrow", hidden=48), tmp_path / "narrow.gguf", "F16")
    with pytest.raises(UserError, match=r"Q8_0 cannot store .* --gguf_type F16"):
        export_gguf(moved(narrow, MLP), narrow, out, "Q8_0")
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad)[0] = 1e8
    with pytest.raises(UserError, match=r"not finite once merged and stored as F16 \(largest"):
        export_gguf(policy, base, out)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_a_mixture_of_experts_from_the_command_line(base, tmp_path, capsys):
    math, code = make_experts(tmp_path / "experts", str(base), names=("math", "code"))
    both = ["export", "--expert", math, "--expert", code, "--weights", "0.6,0.9", "--model.dtype", "float32", "--quiet"]
    assert main([*both, "--out", str(tmp_path / "out.gguf"), "--format", "gguf"]) == 0
    assert main([*both, "--out", str(tmp_path / "folder")]) == 0
    mixed = ["experts", "mix", math, code, "--weights", "0.6", "0.9", "--out", str(tmp_path / "both")]
    assert main(mixed) == 0
    one = ["export", "--expert", str(tmp_path / "both"), "--model.dtype", "float32", "--quiet"]
    assert main([*one, "--out", str(tmp_path / "one")]) == 0
    loaded = [load_base(str(tmp_path / name), "float32") for name in ("folder", "one", "out.gguf")]
    folder, one_folder, file = (model.state_dict() for model in loaded)
    assert all(torch.equal(value, one_folder[name]) for name, value in folder.items())
    assert all(torch.allclose(value, file[name], rtol=1e-3, atol=1e-6) for name, value in folder.items())
    capsys.readouterr()
    assert main([*both, "--out", str(tmp_path / "out.gguf"), "--format", "gguf"]) == 2
    assert "exists; name a new file" in capsys.readouterr().err
    assert main([*both, "--out", str(tmp_path / "new.gguf"), "--format", "gguf", "--model.base", "tiny"]) == 2
    assert "base tiny is no GGUF file; export with --format hf and convert" in capsys.readouterr().err
