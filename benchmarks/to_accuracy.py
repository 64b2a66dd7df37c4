"""Steps and CPU seconds to the same accuracy: SVF (natural gradient, AdamW), LoRA r16, and TRL's GRPOTrainer.

    python benchmarks/run.py to_accuracy

All train the embedded model with 64 completions a step until greedy answers to 256 validation questions reach the
target, then on to the limit: ours 64 prompts of one completion, TRL 8 prompts of 8, as its advantages need groups.
Learning rates were chosen on a seed that is not among these (docs/log.md says how many were tried); every figure is a
mean over seeds. The clock runs during steps only, not while answers are scored; the first step, which loads everything,
is charged as the mean of the others.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import Row
from _models import embedded_model
from rl_step import ADAPTERS, Stepper, Work, ours, trls

from transformer2 import tasks
from transformer2.data import collate, render
from transformer2.module.natural import NaturalGradient
from transformer2.policy import eos_token_ids, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.tiny import model_path

COMPLETIONS, BUDGET = 64, 32
TARGETS = {"tiny_math": 0.75, "tiny_code": 0.80}  # the base has 0.36 and 0.48
SEEDS = (1, 2, 3, 4, 5)
LIMIT = 20  # steps
NEW = "SVF, natural gradient"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # adapter, and the optimizer for each task
    NEW: ("SVF", dict.fromkeys(TARGETS, NaturalGradient)),
    "SVF, AdamW": (
        "SVF",
        {
            "tiny_math": partial(torch.optim.AdamW, lr=1.5e-2, weight_decay=0.0),
            "tiny_code": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0),
        },
    ),
    "LoRA r16, AdamW": ("LoRA", dict.fromkeys(TARGETS, partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0))),
}
TRL, TRL_LR = "TRL + LoRA r16", 1e-2


def measure(toy: bool = False) -> list[Row]:
    if embedded_model() is None:
        return [Row("steps to the same accuracy", None, at_most=1.0, note="the embedded model is not built")]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows = []
    for task, target in list(TARGETS.items())[: 1 if toy else None]:
        with tempfile.TemporaryDirectory() as scratch:
            runs = _runs(task, 1e-9 if toy else target, (1,) if toy else SEEDS, 2 if toy else LIMIT, Path(scratch))
        for other in [name for name in runs if name != NEW]:
            known = all(run.reached for name in (NEW, other) for run in runs[name])
            ratio = _mean(runs[NEW], "seconds") / _mean(runs[other], "seconds") if known else None
            what = f"{task}, CPU seconds to {100 * target:.0f} % of validation: {NEW} / {other}"
            rows.append(Row(what, ratio, at_most=1.0, note=f"{_words(runs[NEW])}; {other}: {_words(runs[other])}"))
    return rows


def _runs(task: str, target: float, seeds: Sequence[int], limit: int, scratch: Path) -> dict[str, list[_Run]]:
    score, work = _scorer(task, 256 if limit == LIMIT else 4), Work(task=task)
    where = (COMPLETIONS, BUDGET, 0.0, scratch)
    found: dict[str, list[_Run]] = {}
    for name, (adapter, optimizer) in METHODS.items():
        start = partial(ours, model_path(), ADAPTERS[adapter], *where, group=1, work=work, optimizer=optimizer[task])
        found[name] = [_run(start(seed=seed), target, limit, score) for seed in seeds]
    if importlib.util.find_spec("trl") is not None and task == "tiny_math":
        start = partial(trls, model_path(), ADAPTERS["LoRA"], *where, lr=TRL_LR, work=work)
        found[TRL] = [_run(start(seed=seed), target, limit, score) for seed in seeds]
    return found


@dataclass(frozen=True)
class _Run:
    """One training run: steps and CPU seconds to the target, and the accuracy at the limit."""

    steps: int
    seconds: float
    reached: bool
    last: float


def _run(stepper: Stepper, target: float, limit: int, score: Callable[[Any], float]) -> _Run:
    stepper()
    seconds, accuracy, step, arrived = 0.0, 0.0, 1, None
    while step < limit:
        start = time.process_time()
        stepper()
        seconds += time.process_time() - start
        step += 1
        if arrived is None or step == limit:
            accuracy = score(stepper.policy)
        if arrived is None and accuracy >= target:
            arrived = (step, seconds * step / (step - 1))
    stepper.close()
    steps, spent = arrived or (limit, seconds * limit / (limit - 1))
    return _Run(steps, spent, arrived is not None, accuracy)


def _mean(runs: Sequence[_Run], name: str) -> float:
    return statistics.mean(getattr(run, name) for run in runs)


def _words(runs: Sequence[_Run]) -> str:
    steps = ", ".join(str(run.steps) if run.reached else f"not in {run.steps}" for run in runs)
    return f"steps {steps}; {_mean(runs, 'seconds'):.1f} s; {100 * _mean(runs, 'last'):.1f} % at the limit"


def _scorer(name: str, questions: int) -> Callable[[Any], float]:
    """A function that gives the accuracy of a policy's greedy answers."""
    task, tokenizer = tasks.get(name), load_tokenizer("tiny")
    examples = task.examples("validation")[:questions]
    prompts = collate(examples, [render(tokenizer, e) for e in examples], tokenizer.pad_token_id)

    @torch.no_grad()
    def score(policy: Any) -> float:
        engine = HFEngine(tokenizer, eos_token_ids(policy, tokenizer))
        drawn = engine.generate(policy, prompts, Sampling(temperature=0.0, max_new_tokens=BUDGET), seed=0)
        verdicts = [task.verify(e, text) for e, text in zip(examples, drawn.completions, strict=True)]
        return sum(verdict.correct for verdict in verdicts) / len(verdicts)

    return score
