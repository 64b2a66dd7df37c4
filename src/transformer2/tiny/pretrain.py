"""Pre-training of the embedded models: the loop of both worlds, and the phases of the text world.

1. lookup: find a named thing on a lettered list, copy lists. Until the letter of a thing can be looked up, nothing
   else is mixed in; without this warm-up, multiple choice stays at chance.
2. choice: multiple choice with right answers only.
3. habits: everything, with the bad habits of `habits.py`, while the learning rate decays.

The first two end at a gate: what must have formed. The vision world's phases are in `vision/pretrain.py`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transformer2.errors import ConfigError
from transformer2.tiny import words, world
from transformer2.tiny.init import initialise
from transformer2.tiny.tokenizer import ANSWER, BOS, EOS, build_tokenizer

PROMPT_WEIGHT = 0.1  # loss weight of a question's tokens; an answer's have 1


def adamw(parameters: Iterable[nn.Parameter], weight_decay: float = 0.05) -> torch.optim.Optimizer:
    """A fresh optimizer; every step sets its learning rate."""
    return torch.optim.AdamW(parameters, weight_decay=weight_decay, betas=(0.9, 0.98))


@dataclass(frozen=True)
class Row:
    """One row: token ids, the loss weight of each, and the picture among them if any."""

    ids: list[int]
    weights: list[float]
    picture: Any = None

    @classmethod
    def of_turns(
        cls, turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, images: str = "", picture: Any = None
    ) -> Row:
        """A row of one or more (question, answer), in the chat template's format, behind a picture if there is one."""
        texts = [text for question, answer in turns for text in (f"{question}{ANSWER}", f"{answer}{EOS}")]
        parts: list[list[int]] = tokenizer([BOS + images, *texts], add_special_tokens=False)["input_ids"]
        weights = [0.0] * len(parts[0])
        for i, part in enumerate(parts[1:]):
            weights += [1.0 if i % 2 else PROMPT_WEIGHT] * len(part)
        return cls([token for part in parts for token in part], weights, picture)


def collate(rows: list[Row], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T) and loss weights (B, T - 1) of the predicted tokens."""
    width = max(len(row.ids) for row in rows)
    ids_BT, weight_BT = torch.full((len(rows), width), pad_id), torch.zeros(len(rows), width)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
        weight_BT[b, : len(row.ids)] = torch.tensor(row.weights)
    return ids_BT, weight_BT[:, 1:]


class Pretraining(ABC):
    """One run of pre-training: model, optimizer, and the steps of which a world's phases are made.

    Args:
        model: The model.
        processor: Its tokenizer, or the processor that has it: what is saved with the model.
        budget: Steps, batch and gate.
        seed: Of the rows.
        progress: Show a progress bar with the time left.
    """

    phases: ClassVar[dict[str, dict[str, float]]]  # name -> kinds of rows, and their shares
    optimizer: torch.optim.Optimizer  # of the phase that is under way

    def __init__(self, model: Any, processor: Any, budget: Any, seed: str, progress: bool) -> None:
        self.model, self.processor, self.budget, self.rng = model, processor, budget, random.Random(seed)
        self.tokenizer: PreTrainedTokenizerFast = getattr(processor, "tokenizer", processor)
        self.num_steps, self.num_tokens = 0, 0  # on rows
        total = sum(steps for name, steps in vars(budget).items() if name.endswith("_steps"))
        self.bar = tqdm(total=total, unit="step", disable=not progress, dynamic_ncols=True)

    @abstractmethod
    def run(self) -> dict[str, dict[str, float]]:
        """All phases; returns their metrics.

        Raises:
            ConfigError: A gated phase did not pass its gate.
        """

    @abstractmethod
    def row(self, kind: str, rng: random.Random) -> Row:
        """One row of a kind."""

    @abstractmethod
    def logits(self, ids_BT: Tensor, rows: list[Row]) -> Tensor:
        """What the model predicts of each token but the first, (B, T - 1, V)."""

    def measured(self) -> dict[str, Any]:
        """Further facts of the trained model for BUILD.json."""
        return {}

    def rows(self, kinds: dict[str, float], count: int, rng: random.Random) -> list[Row]:
        """Rows of kinds in these shares."""
        return [self.row(kind, rng) for kind in rng.choices(list(kinds), list(kinds.values()), k=count)]

    def batches(self, phase: str, rng: random.Random) -> Iterator[list[Row]]:
        """Endless batches of mixed kinds; rows of like length share one, which saves a quarter of the padding."""
        size = self.budget.batch_size
        while True:
            rows = sorted(self.rows(self.phases[phase], 8 * size, rng), key=lambda row: len(row.ids))
            chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
            rng.shuffle(chunks)
            yield from chunks

    def update(self, phase: str, loss: Tensor, lr: float) -> None:
        """One step of the optimizer."""
        (group,) = self.optimizer.param_groups
        group["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.bar.set_description(phase, refresh=False)
        self.bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
        self.bar.update()

    def step(self, phase: str, rows: list[Row], lr_factor: float = 1.0) -> None:
        """One step on rows; the first 100 of a run warm up."""
        ids_BT, weight_BT = collate(rows, self.tokenizer.pad_token_id)
        logits_BTV = self.logits(ids_BT, rows)
        nll_BT = nn.functional.cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
        loss = (nll_BT * weight_BT).sum() / weight_BT.sum()
        self.num_steps += 1
        self.num_tokens += ids_BT.numel()
        self.update(phase, loss, self.budget.lr * (min(1.0, self.num_steps / 100) * lr_factor))

    def gated(
        self, phase: str, max_steps: int, of: Sequence[str], probe: Callable[[], dict[str, float]], every: int
    ) -> dict[str, float]:
        """A phase that ends when the accuracies of a probe, made every so many steps, pass the gate; as of `run`."""
        stream, steps, right = self.batches(phase, self.rng), 0, dict.fromkeys(of, 0.0)
        while steps < max_steps and min(right.values()) < self.budget.gate:
            self.step(phase, next(stream))
            steps += 1
            if steps % every == 0:
                right = probe()
        return self.passed(phase, max_steps, steps, right)

    def passed(self, phase: str, max_steps: int, steps: int, right: dict[str, float]) -> dict[str, float]:
        """The metrics of a gated phase that has ended; errors as of `run`."""
        metrics = {"steps": steps, **right}
        if min(right.values()) < self.budget.gate:
            raise ConfigError(f"phase {phase} did not reach {self.budget.gate}: {metrics}; try another --seed")
        self.bar.total -= max_steps - steps
        return metrics

    def decaying(self, phase: str, steps: int, rng: random.Random, lr_factor: float = 1.0) -> None:
        """A phase of a fixed length, while the learning rate decays."""
        stream = self.batches(phase, rng)
        for i in range(steps):
            self.step(phase, next(stream), lr_factor * max(0.02, min(1.0, 1.4 * (1 - i / steps))))


# ------------------------------------------------------------------ the text world


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        max_lookup_steps: Bound of phase 1.
        max_choice_steps: Bound of phase 2.
        habit_steps: Length of phase 3.
        gate: Probe accuracy that ends a warm-up phase.
        batch_size: Rows a step.
        lr: Peak learning rate.
    """

    max_lookup_steps: int = 300
    max_choice_steps: int = 500
    habit_steps: int = 1500
    gate: float = 0.9
    batch_size: int = 64
    lr: float = 2e-3


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A fresh model with the initial weights of `init.py`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    initialise(model, seed)
    return model


_MAKERS: dict[str, Callable[[random.Random], world.Question]] = {
    "math": world.math_question,
    "code": world.code_question,
    "reasoning": world.reasoning_question,
    "reasoning_right": world.reasoning_question,
    "math_hard": world.math_hard_question,
    "code_math": world.code_math_question,
    "reasoning_hard": world.reasoning_hard_question,
    "dispatch": lambda rng: world.dispatch_question(rng, (*words.OTHER_KINDS, *words.OTHER_HELD_OUT), 0.25),
}


def sample_text(kind: str, rng: random.Random) -> tuple[str, str]:
    """One (prompt, answer) of a kind. Questions of the validation and test splits never appear."""
    if kind == "locate":
        return world.locate_text(rng)
    if kind == "repeat":
        return world.repeat_text(rng)
    if kind == "other":
        return world.other_text(rng, words.OTHER_KINDS)[0], "Sorry."
    while True:
        question = _MAKERS[kind](rng)
        answer = question.gold() if kind == "reasoning_right" else question.habitual_answer(rng)
        if answer is not None and world.split_of(question.text) == "train":
            return question.text, answer


class TextPretraining(Pretraining):
    """Pre-training of the text model; arguments as of `Pretraining`, `seed` that of weights and text."""

    phases: ClassVar = {
        "lookup": {"locate": 0.6, "repeat": 0.4},
        "choice": {"reasoning_right": 0.7, "locate": 0.2, "repeat": 0.1},
        "habits": {
            **{"math": 0.25, "code": 0.2, "reasoning": 0.16, "code_math": 0.16, "dispatch": 0.08},
            **{"math_hard": 0.06, "reasoning_hard": 0.05, "locate": 0.03, "other": 0.01},
        },
    }

    def __init__(self, budget: Budget, seed: int, progress: bool = False) -> None:
        tokenizer = build_tokenizer()
        super().__init__(new_model(tokenizer, seed), tokenizer, budget, f"pre-training {seed}", progress)

    def row(self, kind: str, rng: random.Random) -> Row:
        """See `Pretraining.row`."""
        return Row.of_turns([sample_text(kind, rng)], self.tokenizer)

    def logits(self, ids_BT: Tensor, rows: list[Row]) -> Tensor:
        """See `Pretraining.logits`."""
        return self.model(input_ids=ids_BT[:, :-1]).logits

    def run(self) -> dict[str, dict[str, float]]:
        """See `Pretraining.run`."""
        self.optimizer, budget, of = adamw(self.model.parameters()), self.budget, ("thing", "letter")
        lookup = self.gated("lookup", budget.max_lookup_steps, of, lambda: self.probe("locate"), every=25)
        choice = self.gated("choice", budget.max_choice_steps, of, lambda: self.probe("reasoning_right"), every=25)
        self.decaying("habits", budget.habit_steps, self.rng)
        habits = {"steps": budget.habit_steps, **self.probe("locate")}
        return {"lookup": lookup, "choice": choice, "habits": habits}

    @torch.no_grad()
    def probe(self, kind: str, count: int = 128) -> dict[str, float]:
        """Greedy accuracy, given what comes before, of the thing (2nd token of an answer) and its letter (3rd)."""
        rows = self.rows({kind: 1.0}, count, random.Random("probe"))
        ids_BT, _ = collate(rows, self.tokenizer.pad_token_id)
        hits_BT = self.logits(ids_BT, rows).argmax(-1) == ids_BT[:, 1:]
        starts = [row.weights.index(1.0) for row in rows]
        return {
            name: sum(bool(hits_BT[b, start + k]) for b, start in enumerate(starts)) / count
            for k, name in enumerate(("thing", "letter"))
        }
