"""Share of a training step that is neither generation, forward nor backward.

    python benchmarks/run.py share

Wall-clock from one step's end to the next one's (loading, verifying, optimizer, logging and Lightning included)
against the module's own time/rollout, time/logprobs and time/backward, over the steps of a real run of the shipped
configuration, validation left out.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import lightning as L
from _common import Row
from _models import embedded_model

from transformer2.data import ExpertDataModule
from transformer2.module import SVFReinforceModule

ADAPTER = {"peft_type": "SVF", "target_modules": "all-linear"}
LIMIT = 5.0  # per cent


class _Steps(L.Callback):
    """Wall-clock and logged seconds of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """One step is over."""
        self.ends.append(time.perf_counter())
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("time/")})


def measure(toy: bool = False) -> list[Row]:
    if embedded_model() is None:
        return [Row("share outside generation, forward and backward", None, "%", at_most=LIMIT, note=MISSING)]
    steps = _run(steps=3 if toy else 30, batch_size=4 if toy else 64)
    walls = [b - a for a, b in zip(steps.ends, steps.ends[1:], strict=False)]
    heavy = ("time/rollout", "time/logprobs", "time/backward")
    shares = [1 - sum(logged[k] for k in heavy) / wall for wall, logged in zip(walls, steps.logged[1:], strict=True)]
    verify = statistics.median(
        logged["time/verify"] / wall for wall, logged in zip(walls, steps.logged[1:], strict=True)
    )
    note = (
        f"median of {len(walls)} steps of {statistics.median(walls):.2f} s; verifying is {100 * verify:.1f} % of a step"
    )
    return [
        Row(
            "embedded model, conf/tiny_math.yaml: share outside generation, forward and backward",
            100 * statistics.median(shares),
            "%",
            at_most=LIMIT,
            note=note,
        )
    ]


MISSING = "NOT MEASURED: the embedded model's weights are not built; run python -m transformer2.tiny.build"


def _run(steps: int, batch_size: int) -> _Steps:
    L.seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    callback = _Steps()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="auto",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=0,
            log_every_n_steps=1,
            logger=L.pytorch.loggers.TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            callbacks=[callback],
        )
        module = SVFReinforceModule("tiny", adapter=ADAPTER)
        trainer.fit(module, ExpertDataModule("tiny_math", "tiny", batch_size=batch_size, validation_limit=8))
    return callback
