"""A whole RL step at equal batch: our module under the Lightning Trainer against TRL's GRPOTrainer with LoRA r16.

    python benchmarks/run.py rl_step

Both run their own training loops, each in a thread that stands still between optimizer steps, so that steps of both
alternate in one process and everything a user pays for is inside: data, generation, verifier, loss, backward,
optimizer, bookkeeping. Embedded model, fp32, one thread, the same task, chat template, verifier, prompts per step,
8 completions a prompt and tuned modules. The learning rate is too small to move either policy.

"Same lengths": the end of text is a token the model never says, so every completion has exactly the budget's length.
"As sampled": completions end where they end; our engine drops finished rows, TRL's `generate` does not.

TRL at its best on a CPU: no bf16, no activation checkpointing, one generation per step, no logging, no saving (its
continuous batching is made for GPUs). Ours measures the KL every 10th step even at kl_coef 0, so the ratio is of total
seconds, not of medians.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning as L
import torch
from _common import Row, interleave
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import transformer2
from transformer2.data import ExpertDataModule
from transformer2.module import SVFReinforceModule
from transformer2.module.options import LossOptions, MemoryOptions, SamplingOptions
from transformer2.tiny import model_path

TASK = "tiny_math"
GROUP = 8  # completions per prompt
LR = 1e-7
STANDS_STILL = partial(torch.optim.AdamW, lr=LR, weight_decay=0.0)
NEVER_SAID = "<unk>"
ADAPTERS: dict[str, dict[str, Any]] = {
    "SVF": {"peft_type": "SVF", "target_modules": "all-linear"},
    "SVF factored": {"peft_type": "SVF", "target_modules": "all-linear", "form": "factored"},
    "LoRA": {"peft_type": "LORA", "r": 16, "target_modules": "all-linear"},
}


@dataclass(frozen=True)
class Work:
    """What both train on, and what they hold at a time.

    Attributes:
        task: Name of the task.
        options: Its options.
        dtype: Of the base; bfloat16 is TRL's `bf16`, too.
        attention: Of the base; None takes transformers' choice.
        rows: Completions that TRL scores at a time; None takes all.
        tokens: Padded tokens that ours scores at a time.
    """

    task: str = TASK
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    attention: str | None = None
    rows: int | None = None
    tokens: int = 8192


def measure(toy: bool = False) -> list[Row]:
    if importlib.util.find_spec("trl") is None:
        return [Row("whole RL step: ours / TRL + LoRA r16", None, at_most=0.7, note="trl is not installed")]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rounds = 2 if toy else 20
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        fixed = endless_copy(Path(scratch) / "endless")
        for base, lengths in ((fixed, "same lengths"), (model_path(), "as sampled")):
            for completions in (16,) if toy else (16, 64):
                name = f"{completions} completions, {lengths}"
                rows += _rows(name, base, completions, 32, 0.0, rounds, Path(scratch), target=base == fixed)
        if not toy:
            rows += _rows("64 completions, same lengths, with KL", fixed, 64, 32, 0.1, rounds, Path(scratch), False)
    return rows


def _rows(
    name: str, base: Path, completions: int, budget: int, kl_coef: float, rounds: int, scratch: Path, target: bool
) -> list[Row]:
    pairs = [(ours, "SVF"), (ours, "SVF factored"), (ours, "LoRA"), (trls, "SVF"), (trls, "LoRA")]
    forms = {
        f"{'ours' if start is ours else 'TRL'} + {adapter}": start(
            base, ADAPTERS[adapter], completions, budget, kl_coef, scratch
        )
        for start, adapter in pairs
    }
    times = interleave(forms, rounds, warmup=2)
    for form in forms.values():
        form.close()
    total = {form: sum(seconds) for form, seconds in times.seconds.items()}
    length = {form: sum(stepper.lengths) / len(stepper.lengths) for form, stepper in forms.items()}
    rows = []
    for form in [form for form in forms if form != "TRL + LoRA"]:
        seconds = f"{total[form] / rounds:.3f} of {total['TRL + LoRA'] / rounds:.3f} s a step"
        median = f"median ratio {times.ratio(form, 'TRL + LoRA'):.2f}"
        tokens = f"{length[form]:.1f} and {length['TRL + LoRA']:.1f} tokens a completion"
        note = f"{seconds}, {median}; {tokens}"
        limit = 0.7 if target and form == "ours + SVF" else None
        ratio = total[form] / total["TRL + LoRA"]
        rows.append(Row(f"{name}: {form} / TRL + LoRA r16, CPU seconds", ratio, at_most=limit, note=note))
    return rows


def loading(work: Work) -> dict[str, Any]:
    """What `from_pretrained` takes for it."""
    return {} if work.attention is None else {"attn_implementation": work.attention}


def endless_copy(folder: Path) -> Path:
    """The embedded model with an end of text that it never says."""
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.eos_token = NEVER_SAID
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Stepper:
    """A trainer's own loop in a thread; each call lets it run to the end of its next optimizer step.

    Args:
        loop: Trains until `closing`, calling `pause()` at the end of every step.
    """

    def __init__(self, loop: Callable[[Stepper], object]) -> None:
        self.closing = False
        self.policy: Any = None  # from the first step on
        self.lengths: list[float] = []  # tokens of every completion
        self._failure: BaseException | None = None
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()

    def _run(self, loop: Callable[[Stepper], object]) -> None:
        self._go.acquire()
        torch.set_num_threads(1)
        try:
            loop(self)
        except BaseException as e:
            self._failure = e
        self._done.release()

    def pause(self) -> None:
        """Called by the loop: hand over and wait."""
        self._done.release()
        self._go.acquire()

    def __call__(self) -> None:
        """Run one step."""
        self._go.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Let the loop end."""
        self.closing = True
        self()


def ours(
    base: Path,
    adapter: dict[str, Any],
    completions: int,
    budget: int,
    kl_coef: float,
    scratch: Path,
    group: int = GROUP,
    work: Work = Work(),
    optimizer: Callable[[Any], torch.optim.Optimizer] = STANDS_STILL,
    seed: int = 0,
) -> Stepper:
    """SVFReinforceModule under the Lightning Trainer."""

    class Pause(L.Callback):
        def __init__(self, stepper: Stepper) -> None:
            self.stepper = stepper

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            self.stepper.policy = trainer.lightning_module.policy
            self.stepper.lengths.append(float(trainer.callback_metrics["train/completion_length"]))
            self.stepper.pause()
            trainer.should_stop = self.stepper.closing

    def loop(stepper: Stepper) -> None:
        L.seed_everything(seed, verbose=False)  # of a LoRA's A
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_steps=100_000, max_epochs=-1, limit_val_batches=0, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            default_root_dir=scratch, callbacks=[Pause(stepper)],
        )  # fmt: skip
        module = SVFReinforceModule(
            str(base), adapter, work.dtype, optimizer=optimizer, seed=seed,
            sampling=SamplingOptions(num_completions=group, max_new_tokens=budget),
            loss=LossOptions(baseline="group_norm" if group > 1 else "batch_mean", kl_coef=kl_coef),
            memory=MemoryOptions(micro_batch_tokens=work.tokens), model_kwargs=loading(work),
        )  # fmt: skip
        size = completions // group
        data = ExpertDataModule(work.task, str(base), task_options=work.options, batch_size=size, seed=seed)
        trainer.fit(module, data)

    return Stepper(loop)


def trls(
    base: Path,
    adapter: dict[str, Any],
    completions: int,
    budget: int,
    kl_coef: float,
    scratch: Path,
    lr: float = LR,
    work: Work = Work(),
    seed: int = 42,
) -> Stepper:
    """TRL's GRPOTrainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    options = {k: v for k, v in adapter.items() if k != "peft_type"}
    config = LoraConfig(**options) if adapter["peft_type"] == "LORA" else transformer2.SVFConfig(**options)
    task = transformer2.tasks.get(work.task, **work.options)
    rows = work.rows or completions
    examples = task.examples("train")

    class Pause(TrainerCallback):
        def __init__(self, stepper: Stepper) -> None:
            self.stepper = stepper

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.stepper.pause()
            control.should_training_stop = self.stepper.closing

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.stepper.policy = model

    def loop(stepper: Stepper) -> None:
        def reward(completions: Any, completion_ids: Any, row: list[int], **_: Any) -> list[float | None]:
            stepper.lengths.extend(map(len, completion_ids))
            said = [completion[0]["content"] for completion in completions]
            return [task.verify(examples[i], text).reward for i, text in zip(row, said, strict=True)]

        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, work.dtype), **loading(work)),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=str(scratch), per_device_train_batch_size=rows, num_generations=GROUP,
                gradient_accumulation_steps=completions // rows, max_completion_length=budget, beta=kl_coef,
                learning_rate=lr, seed=seed, max_steps=100_000, use_cpu=True, bf16=work.dtype == "bfloat16",
                activation_checkpointing=False, logging_strategy="no", save_strategy="no", report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": [[dict(m) for m in e.messages] for e in examples], "row": list(range(len(examples)))}
            ),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=config,
            callbacks=[Pause(stepper)],
        )  # fmt: skip
        trainer.train()

    return Stepper(loop)
