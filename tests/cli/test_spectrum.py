"""`transformer2 spectrum`: numbers and figures of a base's singular values, and of an expert's drift over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from transformer2 import tiny
from transformer2.cli import main
from transformer2.experts.spectrum import matrix_facts


def test_shares_are_those_of_the_svd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    expert = str(tiny.expert_path("math"))
    assert main(["spectrum", "--expert", expert, "--quiet", "--run_dir", str(run)]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["base_model"] == "tiny" and len(report["spectrum"]) == 21
    model = AutoModelForCausalLM.from_pretrained(tiny.model_path())
    for facts in report["spectrum"][::5]:
        sigma_R = torch.linalg.svdvals(model.get_submodule(facts["module"]).weight.detach().double())
        for name, values_R in (("sum", sigma_R), ("sum_of_squares", sigma_R**2)):
            share_R = values_R.cumsum(0) / values_R.sum()
            assert facts[name] == {t: pytest.approx(float(share_R[int(t) - 1]), abs=2e-6) for t in facts[name]}
            for share, rank in facts[f"rank_of_{name}"].items():
                assert share_R[rank - 1] >= int(share) / 100 - 1e-9 and (
                    rank == 1 or share_R[rank - 2] < int(share) / 100
                )
        assert (facts["layer"], facts["rank"]) == (int(facts["module"].split(".")[2]), 128)
    assert report["drift"]["expert"] == "math" and len(report["drift"]["kinds"]["all"]["change"]) == 10
    assert {p.name for p in (run / "figures").iterdir()} == {"drift.png", "spectrum.png", "spectrum_by_layer.png"}
    table = capsys.readouterr().out
    assert "mlp.up_proj" in table and "tenth of the indices" in table
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() in table


def test_another_models_expert_is_noted_and_one_of_another_shape_refused(
    tmp_path: Path, world: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    expert = str(tiny.expert_path("math"))
    flags = ["spectrum", "--expert", expert, "--quiet", "--run_dir", str(tmp_path / "b")]
    with pytest.warns(UserWarning, match="trained on other weights"):
        assert main([*flags, "--model.base", "tiny_b"]) == 0
    assert "other weights" in json.loads((tmp_path / "b" / "report.json").read_text())["notes"][0]
    capsys.readouterr()
    flags[-1] = str(tmp_path / "c")
    assert main([*flags, "--model.base", world[0]]) == 2
    error = capsys.readouterr().err
    assert "the base that it was trained on" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "needs --model.base"),
        (["--model.base", "tiny", "--device", "gpu"], "--device must be"),
        (["--model.base", "tiny", "--expert", "nowhere"], "--expert"),
        (["--model.base", "tiny", "--model.adapter.peft_type", "LORA"], "LORA"),
        (["--model.base", "tiny", "--model.adapter.layers_to_transform", "[9]"], "layer"),
    ],
)
def test_refused(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectrum", *flags, "--quiet", "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_odd_spectra() -> None:
    zero = matrix_facts("model.layers.0.mlp.up_proj", torch.zeros(5, dtype=torch.float64))
    assert zero["sum"] == {"1": 0.2, "2": 0.4, "4": 0.8, "5": 1.0} and zero["rank_of_sum"] == {
        "50": 3,
        "90": 5,
        "99": 5,
    }
    one = matrix_facts("head", torch.tensor([3.0], dtype=torch.float64))
    assert one["layer"] is None and one["sum"] == {"1": 1.0} and one["rank_of_sum_of_squares"]["99"] == 1
    steps = matrix_facts("m.3.x", torch.tensor([9.0, 1.0], dtype=torch.float64))
    assert steps["layer"] == 3 and steps["rank_of_sum"] == {"50": 1, "90": 1, "99": 2}
