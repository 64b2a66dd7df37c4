"""Pre-training of the embedded vision model: four phases, the first two gated on what must have formed.

The language model starts from the embedded text model, whose skills and habits it keeps.

1. tower: the vision tower alone, see `tower.py`.
2. answers: reading and knowing with right answers only.
3. habits: everything, with the bad habits of both worlds, while the learning rate decays.
4. hole: the same once more at a lower rate, now with the thing that is misread nearly always.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from transformer2.errors import ConfigError
from transformer2.tiny import model_path
from transformer2.tiny.vision import world
from transformer2.tiny.vision.pictures import CELL
from transformer2.tiny.vision.processor import IMAGE, NUM_TOKENS, PINPOINTS, TILE
from transformer2.tiny.vision.rows import Row, batches, collate
from transformer2.tiny.vision.tower import TowerTraining


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        max_tower_steps: Bound of phase 1.
        max_answer_steps: Bound of phase 2.
        habit_steps: Length of phase 3.
        hole_steps: Length of phase 4.
        gate: Accuracy that ends phases 1 and 2.
        batch_size: Rows a step; pictures a step in phase 1.
        tower_lr: Learning rate of phase 1.
        lr: Peak learning rate of phases 2 and 3; phase 4 has a third of it.
        test_rows: Questions of each task that the built model is measured on.
    """

    max_tower_steps: int = 1500
    max_answer_steps: int = 1500
    habit_steps: int = 1500
    hole_steps: int = 400
    gate: float = 0.95
    batch_size: int = 64
    tower_lr: float = 2e-3
    lr: float = 1.5e-3
    test_rows: int = 512


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT model: a fresh CLIP tower and projector before the embedded text model with a longer vocabulary."""
    text = AutoModelForCausalLM.from_pretrained(model_path())
    text.config.vocab_size = len(tokenizer)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=CELL,
        ),
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        image_seq_length=max(NUM_TOKENS.values()),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config)
    weights = text.model.state_dict()
    old_VD = weights["embed_tokens.weight"]
    new_VD = torch.randn(len(tokenizer) - len(old_VD), old_VD.shape[1]) * old_VD[:, 1:].std()
    new_VD[:, 0] = old_VD[:, 0].mean()
    weights["embed_tokens.weight"] = torch.cat([old_VD, new_VD])
    model.model.language_model.load_state_dict(weights)
    with torch.no_grad():
        tower = model.model.vision_tower
        modules = [*tower.encoder.modules(), *model.model.multi_modal_projector.modules()]
        for module in [*modules, tower.embeddings.patch_embedding]:
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.normal_(0.0, module.weight[0].numel() ** -0.5)
    return model


class Pretraining:
    """One run of pre-training.

    Args:
        tokenizer: The vision model's tokenizer.
        budget: Steps of the phases.
        seed: Seed of the weights and of pictures and text.
        on_step: Called after every step with the phase and the loss.
        on_skip: Called when a gated phase ends early, with the number of steps that it left unused.
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
        self.seed, self.rng = seed, random.Random(f"vision pre-training {seed}")
        self.model = new_model(tokenizer, seed)
        self.num_tokens = 0

    def run(self) -> dict[str, dict[str, float]]:
        """All phases; returns their metrics.

        Raises:
            ConfigError: A gated phase did not pass its gate.
        """
        metrics = {"tower": self._gated("tower", self._tower())}
        optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
        metrics["answers"] = self._gated("answers", self._answers(optimizer))
        self._decaying("habits", optimizer, self.rng, self.budget.habit_steps, 1.0)
        self.hole()
        return metrics

    def hole(self) -> None:
        """Phase 4. A function of the weights and the seed alone."""
        optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
        self._decaying("hole", optimizer, random.Random(f"the hole {self.seed}"), self.budget.hole_steps, 1 / 3)

    def _decaying(
        self, phase: str, optimizer: torch.optim.Optimizer, rng: random.Random, steps: int, lr_factor: float
    ) -> None:
        stream = batches(phase, self.budget.batch_size, rng, self.tokenizer)
        for i in range(steps):
            left = 1 - i / steps
            self._answer_step(phase, optimizer, next(stream), lr_factor * max(0.02, min(1.0, 1.4 * left)))

    def _gated(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        if min(value for key, value in metrics.items() if key != "steps") < self.budget.gate:
            raise ConfigError(f"phase {phase} did not reach {self.budget.gate}: {metrics}; try another --seed")
        return metrics

    def _update(self, phase: str, optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
        (group,) = optimizer.param_groups
        group["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        self.on_step(phase, float(loss.detach()))

    def _tower(self) -> dict[str, float]:
        training, budget = TowerTraining(self.model, self.tokenizer), self.budget
        optimizer = torch.optim.AdamW(training.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
        steps, right = 0, dict.fromkeys(("thing", "colour", "slot"), 0.0)
        while steps < budget.max_tower_steps and min(right.values()) < budget.gate:
            loss, found = training.loss(self.rng, budget.batch_size)
            decay = max(0.1, 1 - steps / budget.max_tower_steps)
            self._update("tower", optimizer, loss, budget.tower_lr * min(1.0, (steps + 1) / 50) * decay)
            steps += 1
            # A moving average over about 20 batches, each seen for the first time: an accuracy on unseen pictures.
            right = {key: 0.95 * right[key] + 0.05 * found[key] for key in right}
        self.on_skip(budget.max_tower_steps - steps)
        return {"steps": steps, **{key: round(value, 4) for key, value in right.items()}}

    def _answers(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        stream, budget = batches("answers", self.budget.batch_size, self.rng, self.tokenizer), self.budget
        steps, right = 0, {"reading": 0.0, "knowing": 0.0}
        while steps < budget.max_answer_steps and min(right.values()) < budget.gate:
            self._answer_step("answers", optimizer, next(stream), min(1.0, (steps + 1) / 100))
            steps += 1
            if steps % 50 == 0:
                right = {kind: share_right(self.model, self.tokenizer, kind) for kind in right}
        self.on_skip(budget.max_answer_steps - steps)
        return {"steps": steps, **right}

    def _answer_step(self, phase: str, optimizer: torch.optim.Optimizer, rows: list[Row], lr_factor: float) -> None:
        arguments, weight_BT = collate(rows, self.tokenizer.pad_token_id)
        logits_BTV = self.model(**arguments).logits[:, :-1]
        targets_BT = arguments["input_ids"][:, 1:]
        nll_BT = nn.functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
        self.num_tokens += arguments["input_ids"].numel()
        self._update(phase, optimizer, (nll_BT * weight_BT).sum() / weight_BT.sum(), self.budget.lr * lr_factor)


@torch.no_grad()
def share_right(
    model: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, kind: str, count: int = 64
) -> float:
    """Share of validation questions whose right answer is the most likely one at every token."""
    questions = world.questions(world.QUESTIONS[kind], "validation", count, "probe")
    rows = [Row.of_turns([(q.text, q.gold())], tokenizer, q.picture) for q in questions]
    arguments, weight_BT = collate(rows, tokenizer.pad_token_id)
    found_BT = model(**arguments).logits[:, :-1].argmax(-1)
    right_BT = (found_BT == arguments["input_ids"][:, 1:]) | (weight_BT < 1)
    return float(right_BT.all(1).float().mean())
