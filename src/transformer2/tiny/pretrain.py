"""Pre-training of the embedded model: three phases, the first two gated on what must have formed.

1. lookup: find a named thing on a lettered list, copy lists. Until the letter of a thing can be looked up, nothing
   else is mixed in; without this warm-up, multiple choice stays at chance.
2. choice: multiple choice with right answers only.
3. habits: everything, with the bad habits of `habits.py`, while the learning rate decays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transformer2.tiny import words, world
from transformer2.tiny.init import initialise
from transformer2.tiny.tokenizer import ANSWER, BOS, EOS

PROMPT_WEIGHT = 0.1  # loss weight of prompt tokens; answer tokens have 1
PHASES: dict[str, dict[str, float]] = {
    "lookup": {"locate": 0.6, "repeat": 0.4},
    "choice": {"reasoning_right": 0.7, "locate": 0.2, "repeat": 0.1},
    "habits": {
        **{"math": 0.25, "code": 0.2, "reasoning": 0.16, "code_math": 0.16, "dispatch": 0.08},
        **{"math_hard": 0.06, "reasoning_hard": 0.05, "locate": 0.03, "other": 0.01},
    },
}


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


Row = tuple[list[int], int]  # token ids, and the number of prompt tokens among them


def _rows(kinds: dict[str, float], count: int, rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    texts = [sample_text(kind, rng) for kind in rng.choices(list(kinds), list(kinds.values()), k=count)]
    prompts = tokenizer([f"{BOS}{q}{ANSWER}" for q, _ in texts], add_special_tokens=False)["input_ids"]
    answers = tokenizer([f"{a}{EOS}" for _, a in texts], add_special_tokens=False)["input_ids"]
    return [(p + a, len(p)) for p, a in zip(prompts, answers, strict=True)]


def collate(rows: list[Row], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T) and loss weights (B, T - 1) of the predicted tokens."""
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), width), pad_id)
    weight_BT = torch.zeros(len(rows), width)
    for b, (ids, num_prompt) in enumerate(rows):
        ids_BT[b, : len(ids)] = torch.tensor(ids)
        weight_BT[b, :num_prompt] = PROMPT_WEIGHT
        weight_BT[b, num_prompt : len(ids)] = 1.0
    return ids_BT, weight_BT[:, 1:]


def batches(phase: str, size: int, rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Row]]:
    """Endless batches of mixed kinds; rows of like length share a batch, which saves a quarter of the padding."""
    while True:
        rows = sorted(_rows(PHASES[phase], 8 * size, rng, tokenizer), key=lambda row: len(row[0]))
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(chunks)
        yield from chunks


@torch.no_grad()
def probe(
    model: LlamaForCausalLM, kind: str, tokenizer: PreTrainedTokenizerFast, count: int = 128
) -> tuple[float, float]:
    """Teacher-forced greedy accuracy on a warm-up kind: of the thing (2nd answer token), and of its letter (3rd)."""
    ids_BT, _ = collate(rows := _rows({kind: 1.0}, count, random.Random("probe"), tokenizer), tokenizer.pad_token_id)
    guess_BT = model(input_ids=ids_BT).logits.argmax(-1)
    hits = [[bool(guess_BT[b, n + k - 1] == ids_BT[b, n + k]) for k in (1, 2)] for b, (_, n) in enumerate(rows)]
    return sum(h[0] for h in hits) / count, sum(h[1] for h in hits) / count


class Pretraining:
    """Model, optimiser and the three phases.

    Args:
        tokenizer: The world's tokenizer.
        budget: Steps, batch and gate.
        seed: Seed of the weights and of the text.
        on_step: Called after every step with the phase and the loss.
        on_skip: Called when a warm-up phase ends early, with the number of steps that it left unused.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        budget: Budget,
        seed: int,
        on_step: Callable[[str, float], None] = lambda phase, loss: None,
        on_skip: Callable[[int], None] = lambda steps: None,
    ) -> None:
        self.tokenizer, self.budget, self.on_step, self.on_skip = tokenizer, budget, on_step, on_skip
        self.rng = random.Random(f"pre-training {seed}")
        self.model = new_model(tokenizer, seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=budget.lr, weight_decay=0.05, betas=(0.9, 0.98))
        self.num_steps, self.num_tokens = 0, 0

    def _step(self, phase: str, rows: list[Row], lr_factor: float) -> None:
        warm_up = min(1.0, (self.num_steps + 1) / 100)
        self.optimizer.param_groups[0]["lr"] = self.budget.lr * warm_up * lr_factor
        ids_BT, weight_BT = collate(rows, self.tokenizer.pad_token_id)
        logits_BTV = self.model(input_ids=ids_BT[:, :-1]).logits
        nll_BT = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
        loss = (nll_BT * weight_BT).sum() / weight_BT.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.num_steps += 1
        self.num_tokens += ids_BT.numel()
        self.on_step(phase, float(loss.detach()))

    def _warm_up(self, phase: str, probe_kind: str, max_steps: int) -> dict[str, float]:
        """Train until both probes pass the gate; returns the last probe."""
        stream, thing, letter, steps = batches(phase, self.budget.batch_size, self.rng, self.tokenizer), 0.0, 0.0, 0
        while steps < max_steps and min(thing, letter) < self.budget.gate:
            self._step(phase, next(stream), 1.0)
            steps += 1
            if steps % 25 == 0:
                thing, letter = probe(self.model, probe_kind, self.tokenizer)
        self.on_skip(max_steps - steps)
        return {"steps": steps, "thing": thing, "letter": letter}

    def run(self) -> dict[str, dict[str, float]]:
        """All three phases; returns their metrics."""
        metrics = {
            "lookup": self._warm_up("lookup", "locate", self.budget.max_lookup_steps),
            "choice": self._warm_up("choice", "reasoning_right", self.budget.max_choice_steps),
        }
        stream = batches("habits", self.budget.batch_size, self.rng, self.tokenizer)
        for i in range(self.budget.habit_steps):
            left = 1 - i / self.budget.habit_steps
            self._step("habits", next(stream), max(0.02, min(1.0, 1.4 * left)))
        thing, letter = probe(self.model, "locate", self.tokenizer)
        metrics["habits"] = {"steps": self.budget.habit_steps, "thing": thing, "letter": letter}
        return metrics
