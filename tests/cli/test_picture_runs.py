"""Whole runs of the command line on pictures: fit, resume, test, adapt; and what is refused before they start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from picture_task import draw_pictures
from PIL import Image
from safetensors.torch import load_file
from short_runs import same
from vision_bases import make_vision

from transformer2.cli import main
from transformer2.data.pictures import check_pictures
from transformer2.errors import DataError
from transformer2.pictures import PictureFile
from transformer2.report.curve import read_scalars
from transformer2.types import Example


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    base, data = make_vision(folder / "base", "llava_next"), draw_pictures(folder / "data")
    return ["--model.base", str(base), "--data.task", "picture_task.Pictures", "--data.data_dir", str(data), "--quiet"]


def fit(flags: list[str], run: Path, steps: int, *more: str) -> list[str]:
    small = ["--data.batch_size", "8", "--trainer.max_steps", str(steps), "--trainer.val_check_interval", "2"]
    rate = ["--model.sampling.num_completions", "2", "--model.lr_scheduler", "Warmup"]
    return ["fit", "--config", "conf/base.yaml", *flags, *small, *rate, "--run_dir", str(run), *more]


@pytest.fixture(scope="module")
def cut(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "cut"
    assert main(fit(flags, folder, 2)) == 0
    return folder


def test_a_run_that_is_cut_and_resumed_is_the_uncut_one(flags: list[str], cut: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert main(fit(flags, whole, 4)) == 0
    assert main(fit(flags, tmp_path / "resumed", 4, "--ckpt_path", str(cut / "checkpoints" / "last.ckpt"))) == 0
    same(tmp_path / "resumed", whole)
    scored = ["test", "--expert", str(whole / "expert"), "--config", "conf/base.yaml", *flags]
    assert main([*scored, "--run_dir", str(tmp_path / "test")]) == 0
    reports = [json.loads((run / "report.json").read_text()) for run in (whole, tmp_path / "test")]
    assert reports[0]["result"] == reports[1]["result"] and reports[0]["n"] == 8
    records = [json.loads(line) for line in (whole / "records.jsonl").read_text().splitlines()]
    assert [Path(r["images"][0]).name for r in records] == [f"{i}.png" for i in range(24, 32)]
    with Image.open(whole / "figures" / "pictures.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 500


def test_solutions_are_learned_from_pictures(flags: list[str], tmp_path: Path) -> None:
    """What is trained reads pictures, and is z of the language model alone."""
    small = ["--data.batch_size", "8", "--trainer.max_steps", "6", "--trainer.val_check_interval", "6"]
    command = ["fit", "--config", "conf/base.yaml", *flags, *small, "--model.objective", "next_token"]
    assert main([*command, "--model.optimizer.lr", "0.1", "--run_dir", str(tmp_path / "run")]) == 0
    losses = [value for _, value in read_scalars(tmp_path / "run", ("train/loss",))["train/loss"]]
    assert losses[-1] < losses[0] - 0.1, losses
    assert not [key for key in load_file(tmp_path / "run" / "expert" / "adapter_model.safetensors") if "vision" in key]


def test_every_strategy_adapts_to_pictures(flags: list[str], cut: Path, tmp_path: Path) -> None:
    expert = cut / "expert"
    experts = ["--adapt.experts", f"[{expert}]", "--adapt.generations", "1", "--adapt.population", "4"]
    experts += ["--adapt.classifier", str(expert)]
    command = ["adapt", "--config", "conf/adapt_tiny.yaml", "--strategy", "all", *flags, *experts]
    assert main([*command, "--data.few_shot", "4", "--run_dir", str(tmp_path / "adapt")]) == 0
    reports = json.loads((tmp_path / "adapt" / "report.json").read_text())["strategies"]
    assert {name: r["n"] for name, r in reports.items()} == dict.fromkeys(("cem", "prompt", "cls", "scores"), 8)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.unlink(), "cannot be read (No such file"),
        (lambda f: f.write_bytes(f.read_bytes()[:60]), "is broken"),
        (lambda f: Image.new("CMYK", (40, 40)).save(f, "JPEG"), "is stored as CMYK; save it as 8-bit RGB"),
        (lambda f: Image.new("RGB", (1, 1)).save(f), "has 1 x 1 pixels"),
        (lambda f: Image.new("1", (40_000, 500)).save(f), "has 40000 x 500 pixels"),
        (lambda f: Image.new("1", (20_000, 20_000)).save(f), "more than 89 million pixels"),
        (lambda f: f.write_text("no picture"), "is no picture of a known kind"),
        (
            lambda f: Image.new("L", (9, 9)).save(f, "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 255)]),
            "is animated",
        ),
    ],
    ids=["missing", "truncated", "cmyk", "1x1", "wide", "bomb", "text", "animated"],
)
def test_a_bad_picture_of_the_test_split_ends_fit_before_it_loads_the_base(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], said: str
) -> None:
    data = draw_pictures(tmp_path / "data")
    spoil(data / "30.png")
    assert main([*fit(flags, tmp_path / "run", 2), "--data.data_dir", str(data)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"picture {data / '30.png'} " in error and said in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images", ["sign.png", ("sign.png",), (Path("sign.png"),), None, PictureFile("sign.png"), 5])
def test_images_of_a_task_that_are_no_pictures_are_refused_by_name(images: Any) -> None:
    with pytest.raises(DataError, match=r"^mine/7: images is .*(sign.png|None|5).*; give \(PictureFile\(PATH\),\)$"):
        check_pictures([Example("mine/7", ({"role": "user", "content": "How many?"},), "", images=images)])


def test_a_base_of_text_alone_refuses_pictures(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*fit(flags, tmp_path / "run", 2), "--model.base", "tiny"]) == 2
    assert "has a picture, and the base takes none" in capsys.readouterr().err
