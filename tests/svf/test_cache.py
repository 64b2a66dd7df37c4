"""The basis cache under damage, full disks, kills and many writers; and the fingerprint that is its key."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from transformer2.errors import BasisError
from transformer2.svf.basis import Basis, compute_basis
from transformer2.svf.cache import BasisCache
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.fingerprint import fingerprint, fingerprint_checkpoint

NAME = "model.layers.0.mlp.up_proj"
WEIGHT = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))


def never() -> Tensor:
    raise AssertionError("the weight was asked for on a hit")


def equal(a: Basis, b: Basis) -> bool:
    return a.side == b.side and torch.equal(a.vectors_RR, b.vectors_RR) and torch.equal(a.sigma_R, b.sigma_R)


@pytest.fixture
def cache(tmp_path: Path) -> BasisCache:
    cache = BasisCache(tmp_path / "bases", "arch:weights")
    cache.get(NAME, lambda: WEIGHT)
    return cache


# Reading and writing


def test_a_hit_is_exact_and_needs_no_weight(cache: BasisCache) -> None:
    again = BasisCache(cache.folder.parents[1], "arch:weights")
    assert equal(again.get(NAME, never), compute_basis(WEIGHT))
    assert equal(again.get(NAME, lambda: WEIGHT, verify=True), compute_basis(WEIGHT))
    assert again.counts == {"reused": 2} and cache.counts == {"built": 1}
    assert not [f for f in cache.folder.iterdir() if f.suffix not in (".safetensors", ".lock")]


def test_other_base_models_have_other_entries(cache: BasisCache) -> None:
    other = BasisCache(cache.folder.parents[1], "arch:other")
    assert equal(other.get(NAME, lambda: 2 * WEIGHT), compute_basis(2 * WEIGHT))
    assert equal(cache.get(NAME, never), compute_basis(WEIGHT))
    # A file that was carried to the wrong place is not taken for the right one.
    other.path(NAME).write_bytes(cache.path(NAME).read_bytes())
    with pytest.warns(UserWarning, match="belongs to"):
        assert equal(other.get(NAME, lambda: 2 * WEIGHT), compute_basis(2 * WEIGHT))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "..", "", "a b\n.c", "x" * 500, "Ünï", "CON", "a:b*?"])
def test_any_module_path_is_a_safe_file_name(tmp_path: Path, name: str) -> None:
    cache = BasisCache(tmp_path / "root", "../f:/x")
    cache.get(name, lambda: WEIGHT[:4, :3])
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert all(f.parent == cache.folder for f in files) and cache.folder.is_relative_to(tmp_path / "root")
    assert all(f.name.isascii() and len(f.name) < 140 for f in files)
    assert cache.path(name).parent == cache.folder and cache.path(name.upper() + "x") != cache.path(name)


def test_names_that_differ_in_case_only_are_two_files(cache: BasisCache) -> None:
    assert cache.path("a.B").name.lower() != cache.path("a.b").name.lower()


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMER2_CACHE", "/somewhere")
    assert BasisCache(None, "base").folder.parents[1] == Path("/somewhere/basis")
    monkeypatch.delenv("TRANSFORMER2_CACHE")
    assert BasisCache(None, "base").folder.parents[1] == Path.home() / ".cache" / "transformer2" / "basis"


# Damage


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 4]) + (data[at + 1 :] if at != -1 else b"")


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"", lambda d: d[:7], lambda d: d[:200], lambda d: d[:-1], lambda d: d + b"x",
        lambda d: bytes(len(d)), flip(0), flip(20), flip(60), flip(300), flip(-1), flip(-500),
        lambda d: d[:-40] + bytes(40), lambda d: d.replace(b'\\"side\\": \\"in\\"', b'\\"side\\":\\"out\\"'),
    ],
)  # fmt: skip
def test_damage_is_set_aside_and_rebuilt(cache: BasisCache, damage: Callable[[bytes], bytes]) -> None:
    path = cache.path(NAME)
    good = path.read_bytes()
    bad = damage(good)
    assert bad != good
    path.write_bytes(bad)
    with pytest.warns(UserWarning, match=r"damaged basis .* rebuilt"):
        assert equal(cache.get(NAME, lambda: WEIGHT), compute_basis(WEIGHT))
    assert path.read_bytes() == good and Path(f"{path}.damaged").read_bytes() == bad
    assert cache.counts["quarantined"] == 1


def test_every_flipped_bit_of_a_sample_is_seen_or_harmless(tmp_path: Path) -> None:
    cache = BasisCache(tmp_path, "f")
    truth = cache.get("w", lambda: WEIGHT[:5, :4])
    path = cache.path("w")
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << position % 8)]) + good[position + 1 :])
        found = cache._load(path, "w", None)
        assert found is None or equal(found, truth), f"byte {position}"


def test_a_wrong_basis_with_a_right_checksum_is_seen(cache: BasisCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(weight_mn: Tensor) -> Basis:
        basis = compute_basis(weight_mn)
        return Basis(basis.side, basis.vectors_RR + 0.01, basis.sigma_R)

    with monkeypatch.context() as patched:
        patched.setattr("transformer2.svf.cache.compute_basis", skewed)
        cache.get("skewed", lambda: WEIGHT)
    with pytest.warns(UserWarning, match="not orthogonal"):
        cache.get("skewed", lambda: WEIGHT)
    with pytest.warns(UserWarning, match="not the basis of this weight"):
        assert equal(cache.get(NAME, lambda: 3 * WEIGHT, verify=True), compute_basis(3 * WEIGHT))


# Faults


def test_a_weight_without_a_basis_leaves_nothing_and_is_named(cache: BasisCache) -> None:
    with pytest.raises(BasisError, match=r"mlp\.bad: .*1 non-finite"):
        cache.get("mlp.bad", lambda: torch.tensor([[1.0, float("nan")]]))
    assert not cache.path("mlp.bad").exists()


def test_a_weight_that_cannot_be_read_is_no_fault_of_its_basis(cache: BasisCache) -> None:
    def unreadable() -> Tensor:
        raise BasisError("shard 3 is unreadable")

    with pytest.raises(BasisError, match="shard 3"):
        cache.get(NAME, unreadable, verify=True)
    assert equal(cache.get(NAME, never), compute_basis(WEIGHT)) and not cache.counts["quarantined"]


def test_a_full_disk_is_a_clear_error_and_harms_nothing(cache: BasisCache, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f: f.read_bytes() for f in cache.folder.glob("*.safetensors")}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(BasisError, match="No space left on device; free some space") as e:
            cache.get("another", lambda: WEIGHT)
        assert "\n" not in str(e.value)
    assert {f: f.read_bytes() for f in cache.folder.iterdir() if f.suffix != ".lock"} == before
    assert equal(cache.get("another", lambda: WEIGHT), compute_basis(WEIGHT))


def test_a_size_limit_mid_write_is_a_clear_error(tmp_path: Path) -> None:
    """A real failing write(2): the process may write no file beyond 4 KiB."""
    code = f"""
import resource, signal, torch
from transformer2.svf.cache import BasisCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache = BasisCache({str(tmp_path)!r}, "f")
cache.get("small", lambda: torch.eye(4))
try:
    cache.get("large", lambda: torch.eye(100))
except ValueError as e:
    print(type(e).__name__, e)
"""
    out = subprocess.run([sys.executable, "-c", code], env=_env(), capture_output=True, text=True).stdout
    assert out.startswith("BasisError") and "File too large" in out
    names = {f.name.split("-")[0] for f in tmp_path.rglob("*") if f.is_file() and f.suffix != ".lock"}
    assert names == {"small"}


def test_a_root_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BasisError, match=r"Not a directory.*name a writable folder"):
        BasisCache(tmp_path / "file", "f").get(NAME, lambda: WEIGHT)


def test_a_writer_killed_mid_write_leaves_no_trace(cache: BasisCache) -> None:
    code = f"""
import os, torch
from transformer2.svf import cache
cache.os.replace = lambda *a: os.kill(os.getpid(), 9)
cache.BasisCache({str(cache.folder.parents[1])!r}, "arch:weights").get("killed", lambda: torch.eye(5))
"""
    assert subprocess.run([sys.executable, "-c", code], env=_env()).returncode == -9
    assert equal(cache.get("killed", lambda: torch.eye(5)), compute_basis(torch.eye(5)))  # the lock died with it
    assert not list(cache.folder.glob(".*"))


def test_many_writers_end_with_one_good_cache(tmp_path: Path) -> None:
    """Eight processes, started on damaged and missing entries at once: each entry is computed once, all agree."""
    start = BasisCache(tmp_path, "f")
    start.get("w0", lambda: WEIGHT)
    start.path("w0").write_bytes(start.path("w0").read_bytes()[:-9])
    code = f"""
import sys, time, torch, warnings
from transformer2.svf.cache import BasisCache
warnings.simplefilter("ignore")
torch.set_num_threads(1)
weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
cache = BasisCache({str(tmp_path)!r}, "f")
print("ready", flush=True)
sys.stdin.readline()
sums = [float(cache.get(f"w{{i}}", lambda: weight * (1 + i)).vectors_RR.sum()) for i in range(6)]
print(cache.counts["built"], cache.counts["quarantined"], *sums)
"""
    # Torch loads slowly: one process forks the writers, and lets them go together.
    forks = f"""
import os, torch, sys
from transformer2.svf import cache
code = {code!r}
pipes = []
for _ in range(8):
    (r, w), (r2, w2) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(w), os.dup2(r, 0), os.dup2(w2, 1)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", buffering=1)
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    os.close(r), os.close(w2)
    pipes.append((w, os.fdopen(r2)))
for _, out in pipes:
    out.readline()
for w, _ in pipes:
    os.write(w, b"go\\n")
for _, out in pipes:
    print(out.readline().strip())
"""
    out = subprocess.run([sys.executable, "-c", forks], env=_env(), capture_output=True, text=True, timeout=120)
    rows = [line.split() for line in out.stdout.splitlines()]
    assert len(rows) == 8, out.stderr
    assert sum(int(row[0]) for row in rows) == 6 and sum(int(row[1]) for row in rows) == 1
    assert len({tuple(row[2:]) for row in rows}) == 1
    end = BasisCache(tmp_path, "f")
    assert all(equal(end.get(f"w{i}", never), compute_basis(WEIGHT * (1 + i))) for i in range(6))
    assert not list(end.folder.glob(".*")) and len(list(end.folder.glob("*.damaged"))) == 1


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


# Fingerprints


def tiny_llama(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**config, **changes}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_has_the_fingerprint_of_its_model(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "a", max_shard_size="20KB")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=dtype)
    assert fingerprint_checkpoint(LocalCheckpoint(tmp_path / "a", dtype)) == fingerprint(model)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint_checkpoint(LocalCheckpoint(tmp_path / "b", dtype)) == fingerprint(model)
    if dtype == torch.float32:
        # The checkpoint's own dtype.
        assert fingerprint_checkpoint(LocalCheckpoint(tmp_path / "b")) == fingerprint(model)


def test_gpt2_too(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16))
    model.save_pretrained(tmp_path)
    assert fingerprint_checkpoint(LocalCheckpoint(tmp_path)) == fingerprint(model)


def test_what_changes_a_fingerprint_and_what_does_not() -> None:
    model = tiny_llama()
    arch, weights = fingerprint(model).split(":")
    assert len(arch) == len(weights) == 16
    model.config.pad_token_id, model.config.use_cache, model.config._name_or_path = 3, False, "/elsewhere"
    assert fingerprint(model.train()) == fingerprint(tiny_llama()) == f"{arch}:{weights}"

    assert fingerprint(tiny_llama().bfloat16()).startswith(arch) and not fingerprint(model.bfloat16()).endswith(weights)
    assert fingerprint(tiny_llama(seed=1)).startswith(arch) and not fingerprint(tiny_llama(seed=1)).endswith(weights)
    for change in ({"intermediate_size": 64}, {"num_attention_heads": 2}, {"num_hidden_layers": 1}, {"vocab_size": 41}):
        assert not fingerprint(tiny_llama(**change)).startswith(arch)

    stepped = tiny_llama()
    with torch.no_grad():
        stepped.get_submodule(NAME).weight.add_(1e-6 * torch.randn(48, 32))  # type: ignore[operator, union-attr]
    assert not fingerprint(stepped).endswith(weights)


@pytest.mark.parametrize("target", [["up_proj"], ["up_proj", "q_proj", "lm_head"]])
def test_adapters_do_not_count(target: list[str]) -> None:
    plain = fingerprint(tiny_llama())
    wrapped = get_peft_model(tiny_llama(), LoraConfig(target_modules=target, modules_to_save=["norm"]))
    assert fingerprint(wrapped) == fingerprint(wrapped.get_base_model()) == plain
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert fingerprint(wrapped) == plain


def test_a_quantised_copy_keeps_its_architecture() -> None:
    """A packed weight counts with its logical shape, wherever it keeps its numbers."""

    class Packed(nn.Linear):
        def __init__(self, linear: nn.Linear):
            super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
            packed = torch.randint(0, 255, (linear.weight.numel() // 2, 1), dtype=torch.uint8)
            self.weight = nn.Parameter(packed, requires_grad=False)

    class Hidden(nn.Module):
        def __init__(self, linear: nn.Linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("qweight", torch.zeros(3, dtype=torch.int32))

    arch, weights = fingerprint(tiny_llama()).split(":")
    for kind in (Packed, Hidden):
        model = tiny_llama()
        for name, module in list(model.named_modules()):
            if name.endswith("_proj"):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, kind(module))  # type: ignore[arg-type]
        got = fingerprint(model).split(":")
        assert got[0] == arch and got[1] != weights


def test_weights_that_are_not_here_come_from_the_folder(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = fingerprint(model)
    model.to("meta")
    model.config._name_or_path = str(tmp_path)
    assert fingerprint(model) == expected
    model.config._name_or_path = "nobody/nothing"
    with pytest.raises(BasisError, match="folder is unknown"):
        fingerprint(model)


def test_renamed_tensors_are_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["strange"] = tensors.pop(f"{NAME}.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BasisError, match=rf"no tensor for '{NAME}\.weight'"):
        fingerprint_checkpoint(LocalCheckpoint(tmp_path))
    with pytest.raises(BasisError, match=r"config\.json"):
        fingerprint_checkpoint(LocalCheckpoint(tmp_path / "nowhere"))
