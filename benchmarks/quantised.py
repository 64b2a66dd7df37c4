"""Experts and bases of different precision: the accuracy of every expert on every base, embedded task, test split.

    python benchmarks/run.py quantised

The expert of the fp32 base is the one that ships; the others are trained here, each on its own base, by the same
command (conf/tiny_math.yaml under AdamW, seed 0; about 80 s each). The last column runs the fp32 expert on bases
decomposed from the rounded weights instead of the stored ones: what would happen if a quantised base were taken as it
comes.
Greedy answers; n and the standard error are those of one accuracy, the same questions everywhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning as L
from _common import Row

from transformer2.cli import main as command
from transformer2.cli.compose import compose
from transformer2.cli.keys import KEYS
from transformer2.data import ExpertDataModule
from transformer2.module import SVFReinforceModule
from transformer2.policy import load_expert
from transformer2.svf import bases as svf_bases
from transformer2.tiny import model_path
from transformer2.types import Score

TASK = "tiny_math"
BASES: dict[str, list[str]] = {
    "fp32": [],
    "bf16": ["--model.dtype", "bfloat16"],
    "nf4": ["--config", "conf/quantisation/nf4.yaml"],
    "int8": ["--config", "conf/quantisation/int8.yaml"],
    "torchao int8": ["--config", "conf/quantisation/torchao_int8.yaml"],
}
ROUNDED = "fp32, rounded basis"


def measure(toy: bool = False) -> list[Row]:
    missing = [name for name in ("bitsandbytes", "torchao") if importlib.util.find_spec(name) is None]
    if missing:
        note = f"{missing[0]} is not installed"
        return [Row("nf4 base, expert of fp32: accuracy", None, "%", at_least=70.0, note=note)]
    for name in ("bitsandbytes", "torchao", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bases = {name: BASES[name] for name in ("fp32", "nf4")} if toy else BASES
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        experts = {"fp32": model_path().parent / "experts" / TASK.removeprefix("tiny_")}
        for name, flags in bases.items():
            if name not in experts:
                experts[name] = _train(flags, Path(scratch) / name.replace(" ", "_"), toy)
        scores: dict[tuple[str, str], Score] = {}
        for name, flags in bases.items():
            scores |= {(name, of): score for of, score in _score(flags, experts, toy).items()}
            if name not in ("fp32", "bf16"):
                with mock.patch.object(svf_bases, "unquantised_checkpoint", lambda model: None):
                    found = _score(flags, {ROUNDED: experts["fp32"]}, toy)
                scores[name, ROUNDED] = found[ROUNDED]
    print(matrix(scores), flush=True)
    goal = {("nf4", "fp32"): 70.0, ("fp32", "nf4"): 70.0}
    return [
        Row(
            f"{name} base, {'z = 1' if of == 'none' else f'expert of {of}'}: accuracy",
            100 * score.accuracy,
            "%",
            at_least=goal.get((name, of)),
            note=f"± {100 * score.se:.1f}, n = {score.n}",
        )
        for (name, of), score in scores.items()
    ]


def matrix(scores: dict[tuple[str, str], Score]) -> str:
    """Markdown: one row a base, one column an expert."""
    rows, columns = dict.fromkeys(name for name, _ in scores), dict.fromkeys(of for _, of in scores)
    lines = [f"| base | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in rows:
        cells = (
            f"{100 * s.accuracy:.1f} ± {100 * s.se:.1f}" if (s := scores.get((name, of))) else "" for of in columns
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _train(flags: list[str], run: Path, toy: bool) -> Path:
    short = ["--trainer.max_steps", "1", "--data.test_limit", "8", "--data.validation_limit", "8"] if toy else []
    rate = ["--optimizer", "AdamW", "--optimizer.lr", "1.5e-2"]  # as the expert that ships was trained
    words = ["fit", "--config", "conf/tiny_math.yaml", *rate, *flags, *short, "--run_dir", str(run), "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        if command(words):
            raise RuntimeError(f"{' '.join(words)} failed")
    return run / "expert"


def _score(flags: list[str], experts: dict[str, Path], toy: bool) -> dict[str, Score]:
    """Accuracy of every expert on one base, and of the base itself under `none`."""
    configs = [value for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag == "--config"]
    overrides = [(flag[2:], value) for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag != "--config"]
    model: dict[str, Any] = compose(["conf/tiny_math.yaml", *configs], overrides, KEYS)["model"]
    model.pop("optimizer")  # nothing is trained here
    module = SVFReinforceModule(**{**model, "base": "tiny"})
    data = ExpertDataModule(task=TASK, base="tiny", test_limit=8 if toy else None)
    scores: dict[str, Score] = {}
    module.configure_model()
    for of, folder in experts.items():
        load_expert(module.policy, folder)
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.test(module, data, verbose=False)
        scores["none"] = Score.of([r.base.correct for r in module.records])
        scores[of] = Score.of([r.result.correct for r in module.records])
    return scores
