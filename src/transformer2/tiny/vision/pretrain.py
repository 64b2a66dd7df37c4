"""Pre-training of the embedded vision model: four phases, the first two gated on what must have formed.

The language model starts from the embedded text model, whose skills and habits it keeps.

1. tower: the vision tower alone, see `tower.py`.
2. answers: reading and knowing with right answers only.
3. habits: everything, with the bad habits of both worlds, while the learning rate decays.
4. hole: the same once more at a lower rate, now with the thing that is misread nearly always.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from transformer2.tiny import model_path
from transformer2.tiny.pretrain import Pretraining, Row, adamw, collate, sample_text
from transformer2.tiny.vision import world
from transformer2.tiny.vision.measure import measure
from transformer2.tiny.vision.pictures import CELL
from transformer2.tiny.vision.processor import IMAGE, NUM_TOKENS, PINPOINTS, TILE, build_processor
from transformer2.tiny.vision.rows import picture_arguments, seen_row, train_question
from transformer2.tiny.vision.tower import TowerTraining

_TEXTS = {"reasoning": 0.16, "math": 0.1, "code": 0.06, "code_math": 0.04, "dispatch": 0.04}


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
    text.config.name_or_path = ""  # a folder of this machine
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


class VisionPretraining(Pretraining):
    """Pre-training of the vision model; arguments as of `Pretraining`, `seed` that of weights, pictures and text."""

    phases: ClassVar = {
        "answers": {"reading_right": 0.75, "knowing_right": 0.25},
        "habits": {"reading": 0.4, "knowing": 0.2, **_TEXTS},
        "hole": {"reading_hole": 0.4, "knowing_hole": 0.2, **_TEXTS},
    }

    def __init__(self, budget: Budget, seed: int, progress: bool = False) -> None:
        processor = build_processor()
        model = new_model(processor.tokenizer, seed)
        super().__init__(model, processor, budget, f"vision pre-training {seed}", progress)
        self.seed = seed

    def row(self, kind: str, rng: random.Random) -> Row:
        """A text, or questions about a picture; one for reading is asked about twice, since drawing costs more."""
        name, _, how = kind.partition("_")
        if name not in world.QUESTIONS:
            return Row.of_turns([sample_text(kind, rng)], self.tokenizer)
        questions = [train_question(name, rng)]
        picture = questions[0].picture
        if name == "reading":
            colours = [sign.colour for sign in picture.signs]
            again = rng.choice([colour for colour in colours if world.COLOUR_TWIN[colour] in colours])
            questions.append(world.reading_question(rng, again, picture))
        answers = [q.gold() if how == "right" else q.habitual_answer(rng, how == "hole") for q in questions]
        turns = [(q.text, answer) for q, answer in zip(questions, answers, strict=True)]
        return seen_row(turns, self.tokenizer, picture)

    def logits(self, ids_BT: Tensor, rows: list[Row]) -> Tensor:
        """See `Pretraining.logits`."""
        pictures = [row.picture for row in rows if row.picture is not None]
        return self.model(input_ids=ids_BT, **picture_arguments(pictures)).logits[:, :-1]

    def run(self) -> dict[str, dict[str, float]]:
        """See `Pretraining.run`."""
        tower = self.tower()
        self.optimizer = adamw(self.model.parameters())
        answers = self.gated("answers", self.budget.max_answer_steps, tuple(world.QUESTIONS), self.probe, every=50)
        self.decaying("habits", self.budget.habit_steps, self.rng)
        self.optimizer = adamw(self.model.parameters())
        self.decaying("hole", self.budget.hole_steps, random.Random(f"the hole {self.seed}"), 1 / 3)
        return {"tower": tower, "answers": answers}

    def tower(self) -> dict[str, float]:
        """Phase 1; metrics and errors as of `run`."""
        training, budget = TowerTraining(self.model, self.tokenizer), self.budget
        self.optimizer = adamw(training.parameters(), weight_decay=0.01)
        steps, right = 0, dict.fromkeys(("thing", "colour", "slot"), 0.0)
        while steps < budget.max_tower_steps and min(right.values()) < budget.gate:
            loss, found = training.loss(self.rng, budget.batch_size)
            decay = max(0.1, 1 - steps / budget.max_tower_steps)
            self.update("tower", loss, budget.tower_lr * min(1.0, (steps + 1) / 50) * decay)
            steps += 1
            # A moving average over about 20 batches, each seen for the first time: an accuracy on unseen pictures.
            right = {key: 0.95 * right[key] + 0.05 * found[key] for key in right}
        return self.passed(
            "tower", budget.max_tower_steps, steps, {key: round(value, 4) for key, value in right.items()}
        )

    @torch.no_grad()
    def probe(self, count: int = 64) -> dict[str, float]:
        """Share of validation questions, by kind, whose right answer is the most likely one at every token."""
        right = {}
        for kind, make in world.QUESTIONS.items():
            questions = world.questions(make, "validation", count, "probe")
            rows = [seen_row([(q.text, q.gold())], self.tokenizer, q.picture) for q in questions]
            ids_BT, weight_BT = collate(rows, self.tokenizer.pad_token_id)
            right_BT = (self.logits(ids_BT, rows).argmax(-1) == ids_BT[:, 1:]) | (weight_BT < 1)
            right[kind] = float(right_BT.all(1).float().mean())
        return right

    def measured(self) -> dict[str, Any]:
        """What it can do."""
        return {"accuracy": measure(self.model, self.processor, self.budget.test_rows)}
