"""The control of Table 5: the same values of z, none where it was learnt, and never mistaken for an expert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from transformer2 import tiny
from transformer2.cli import main
from transformer2.experts import read_expert, shuffle_expert
from transformer2.experts.spectrum import PARTS, drift
from transformer2.svf.decompose import spectra


@pytest.fixture(scope="module")
def math():
    return read_expert(tiny.expert_path("math"))


def test_the_same_values_in_another_order(math) -> None:
    shuffled = shuffle_expert(math, 0)
    assert shuffled.deltas.keys() == math.deltas.keys() and shuffled.base_fingerprint == math.base_fingerprint
    for module, delta_R in math.deltas.items():
        other_R = shuffled.deltas[module]
        assert torch.equal(other_R.sort().values, delta_R.sort().values)
        assert (other_R == delta_R).float().mean() < 0.1
    assert (shuffled.step, shuffled.score, shuffled.shuffled) == (None, None, 0)


def test_a_seed_decides_and_every_matrix_and_expert_has_its_own_order(math) -> None:
    def order(expert, seed, module):
        return torch.argsort(expert.deltas[module])[
            torch.argsort(torch.argsort(shuffle_expert(expert, seed).deltas[module]))
        ]

    first, second = list(math.deltas)[:2]
    assert torch.equal(order(math, 3, first), order(math, 3, first))
    code = read_expert(tiny.expert_path("code"))
    for other in (order(math, 4, first), order(math, 3, second), order(code, 3, first)):
        assert not torch.equal(order(math, 3, first), other)


def test_folder_says_what_it_is_and_peft_loads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "control"
    assert main(["experts", "shuffle", str(tiny.expert_path("math")), "--out", str(out), "--seed", "7"]) == 0
    assert "a control" in capsys.readouterr().out
    assert "z in another order within each matrix (seed 7)" in (out / "README.md").read_text()
    assert json.loads((out / "adapter_config.json").read_text())["shuffled"] == 7
    assert read_expert(out).shuffled == 7 and read_expert(out).task == "tiny_math"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.model_path()), out)
    assert main(["experts", "show", str(out)]) == 0
    assert "another order" in capsys.readouterr().out
    assert main(["experts", "shuffle", str(tiny.expert_path("math")), "--out", str(out)]) == 2  # keeps what is there


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "99999999999"])
def test_a_seed_that_is_none_is_refused(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expert = str(tiny.expert_path("math"))
    assert main(["experts", "shuffle", expert, "--out", str(tmp_path / "x"), f"--seed={seed}"]) == 2
    assert main(["test", "--expert", expert, f"--shuffle_expert={seed}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--seed must be" in errors[0] and "--shuffle_expert must be" in errors[1] and len(errors) == 2


def test_drift_adds_up_and_finds_where_z_moved(math, tmp_path: Path) -> None:
    sigmas = dict(spectra("tiny", progress=False).values)
    kinds = drift(math, sigmas)
    assert set(kinds) == {"all", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"} | {
        f"self_attn.{p}_proj" for p in "qkvo"
    }
    for figures in kinds.values():
        assert all(len(values) == PARTS for values in figures.values())
        assert sum(figures["change"]) == pytest.approx(1, abs=1e-4) == sum(figures["weight"])
    whole = torch.cat([delta_R.abs() for delta_R in math.deltas.values()])
    assert sum(kinds["all"]["mean_abs"]) / PARTS == pytest.approx(float(whole.mean()), rel=0.03)

    module, delta_R = next(iter(math.deltas.items()))
    last_R = torch.zeros_like(delta_R)
    last_R[-1] = 0.5
    moved = drift(type(math)("one", None, None, None, None, None, None, {module: last_R}), sigmas)["all"]
    assert moved["change"] == [0.0] * 9 + [1.0] and moved["mean_abs"][:9] == [0.0] * 9


def test_a_matrix_smaller_than_ten_has_no_figure_for_some_tenths(math) -> None:
    one = type(math)("one", None, None, None, None, None, None, {"m.layers.0.mlp.up_proj": torch.ones(4)})
    found = drift(one, {"m.layers.0.mlp.up_proj": torch.tensor([4.0, 3.0, 2.0, 1.0])})["all"]
    assert [i for i, v in enumerate(found["mean_abs"]) if v is not None] == [0, 2, 5, 7]
