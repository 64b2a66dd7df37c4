"""CPU seconds to the same accuracy: our module with SVF against TRL's GRPOTrainer with LoRA r16, embedded model.

    python benchmarks/run.py to_accuracy

Both train tiny_math with 64 completions a step until greedy answers to 256 validation questions reach the target. Ours
runs the shipped configuration (conf/tiny_math.yaml: 64 prompts a step), TRL 8 prompts of 8 completions, as its
advantages need groups, at each of several learning rates, of which the best counts. The clock runs during steps only:
not while the answers are scored, and not in the first step, which loads everything.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Row
from _models import embedded_model
from rl_step import ADAPTERS, TASK, Stepper, ours, trls

from transformer2 import tasks
from transformer2.data import collate, render
from transformer2.policy import eos_token_ids, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.tiny import model_path

COMPLETIONS, BUDGET = 64, 32
TARGET = 0.75  # the base has 0.36, the shipped expert 0.79
OUR_LR = 1.5e-2  # of conf/tiny_math.yaml; 3e-2 and 6e-2 take longer (docs/log.md)
TRL_LRS = (1e-3, 3e-3, 1e-2)
LIMIT, EVERY = 60, 1  # steps; steps between two scores
WHAT = f"CPU seconds to {100 * TARGET:.0f} % of validation: ours + SVF / TRL + LoRA r16 at its best learning rate"


def measure(toy: bool = False) -> list[Row]:
    if importlib.util.find_spec("trl") is None or embedded_model() is None:
        return [Row(WHAT, None, at_most=1.0, note="trl is not installed, or the embedded model is not built")]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    score, base = _scorer(4 if toy else 256), model_path()
    limit, every, target = (1, 1, 1e-9) if toy else (LIMIT, EVERY, TARGET)
    with tempfile.TemporaryDirectory() as scratch:
        where = (COMPLETIONS, BUDGET, 0.0, Path(scratch))

        def run(stepper: Stepper) -> _Run:
            return _until(target, stepper, score, limit, every)

        mine = run(ours(base, ADAPTERS["SVF"], *where, lr=OUR_LR, group=1))
        rates = TRL_LRS[:1] if toy else TRL_LRS
        theirs = {lr: run(trls(base, ADAPTERS["LoRA"], *where, lr=lr)) for lr in rates}
    note = f"ours {mine.words}; " + "; ".join(f"TRL lr {lr:g} {other.words}" for lr, other in theirs.items())
    if not mine.reached:
        return [Row(WHAT, None, at_most=1.0, note=f"the target was not reached: {note}")]
    # Where TRL never arrives, what it spent at its longest: the ratio is then an upper bound.
    arrived = [other.seconds for other in theirs.values() if other.reached]
    their_seconds = min(arrived) if arrived else max(other.seconds for other in theirs.values())
    return [Row(WHAT, mine.seconds / their_seconds, at_most=1.0, note=note)]


@dataclass(frozen=True)
class _Run:
    """One training run up to the target or its last step."""

    accuracy: float
    reached: bool
    seconds: float
    steps: int

    @property
    def words(self) -> str:
        """How far it came, and at what price."""
        return f"{100 * self.accuracy:.0f} % after {self.seconds:.0f} s and {self.steps} steps"


def _until(target: float, stepper: Stepper, score: Callable[[Any], float], limit: int, every: int) -> _Run:
    stepper()
    seconds, accuracy, step = 0.0, 0.0, 0
    while step < limit and accuracy < target:
        start = time.process_time()
        for _ in range(every):
            stepper()
        seconds += time.process_time() - start
        step += every
        accuracy = score(stepper.policy)
    stepper.close()
    return _Run(accuracy, accuracy >= target, seconds, step)


def _scorer(questions: int) -> Callable[[Any], float]:
    """A function that gives the accuracy of a policy's greedy answers."""
    task, tokenizer = tasks.get(TASK), load_tokenizer("tiny")
    examples = task.examples("validation")[:questions]
    prompts = collate(examples, [render(tokenizer, e) for e in examples], tokenizer.pad_token_id)

    @torch.no_grad()
    def score(policy: Any) -> float:
        engine = HFEngine(tokenizer, eos_token_ids(policy, tokenizer))
        drawn = engine.generate(policy, prompts, Sampling(temperature=0.0, max_new_tokens=BUDGET), seed=0)
        verdicts = [task.verify(e, text) for e, text in zip(examples, drawn.completions, strict=True)]
        return sum(verdict.correct for verdict in verdicts) / len(verdicts)

    return score
