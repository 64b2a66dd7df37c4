"""Mixtures of experts: which fit together, the formula, and what a mixture says of its parts."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from expert_folders import DOWN, UP, expert, refusal
from peft import PeftModel
from transformers import AutoModelForCausalLM

from transformer2.adaptation.mixture import Mixture
from transformer2.errors import UserError
from transformer2.experts import load_experts, mix_experts, mix_folders, read_expert, save_expert


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
        ("shots", (None, ["b"]), ["b"], None),
        ("shots", (["b", "a"], ["c", "a"]), ["a", "b", "c"], None),
        ("protocol", ("clean", "paper"), "paper", None),
        ("protocol", (None, "clean"), "clean", None),
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
