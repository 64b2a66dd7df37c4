"""What pre-training reads: rows of token ids with their pictures, mixed by phase."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from transformer2.tiny import pretrain as text_pretrain
from transformer2.tiny.pretrain import PROMPT_WEIGHT
from transformer2.tiny.tokenizer import ANSWER, BOS, EOS
from transformer2.tiny.vision import world
from transformer2.tiny.vision.pictures import CELL, DrawnPicture, draw
from transformer2.tiny.vision.processor import IMAGE, NUM_TOKENS, TILE

PHASES: dict[str, dict[str, float]] = {
    "answers": {"reading_right": 0.75, "knowing_right": 0.25},
    "habits": {
        **{"reading": 0.4, "knowing": 0.2, "reasoning": 0.16, "math": 0.1, "code": 0.06},
        **{"code_math": 0.04, "dispatch": 0.04},
    },
}
PHASES["hole"] = PHASES["habits"]


@dataclass(frozen=True)
class Row:
    """One row: token ids, the loss weight of each, and the picture in it if any."""

    ids: list[int]
    weights: list[float]
    picture: DrawnPicture | None

    @classmethod
    def of_turns(
        cls,
        turns: list[tuple[str, str]],
        tokenizer: PreTrainedTokenizerFast,
        picture: DrawnPicture | None = None,
    ) -> Row:
        """A row of one or more (question, answer), in the chat template's format, behind a picture if there is one."""
        images = NUM_TOKENS[picture.rows, picture.columns] if picture else 0
        texts = [text for question, answer in turns for text in (f"{question}{ANSWER}", f"{answer}{EOS}")]
        parts: list[list[int]] = tokenizer([BOS + IMAGE * images, *texts], add_special_tokens=False)["input_ids"]
        weights = [0.0] * len(parts[0])
        for i, part in enumerate(parts[1:]):
            weights += [1.0 if i % 2 else PROMPT_WEIGHT] * len(part)
        return cls([token for part in parts for token in part], weights, picture)


def train_question(kind: str, rng: random.Random) -> world.ReadingQuestion:
    """A question of reading or knowing about a picture of the train split."""
    while True:
        question = world.QUESTIONS[kind](rng)
        if world.split_of(question.picture) == "train":
            return question


def row(kind: str, rng: random.Random, tokenizer: PreTrainedTokenizerFast, hole: bool) -> Row:
    """One row of a kind; a picture for reading is asked about twice, which costs less than another picture."""
    name, right = kind.removesuffix("_right"), kind.endswith("_right")
    if name not in world.QUESTIONS:
        return Row.of_turns([text_pretrain.sample_text(kind, rng)], tokenizer)
    questions = [train_question(name, rng)]
    picture = questions[0].picture
    if name == "reading":
        colours = [sign.colour for sign in picture.signs]
        again = rng.choice([colour for colour in colours if world.COLOUR_TWIN[colour] in colours])
        questions.append(world.reading_question(rng, again, picture))
    turns = [(q.text, q.gold() if right else q.habitual_answer(rng, hole)) for q in questions]
    return Row.of_turns(turns, tokenizer, picture)


def batches(phase: str, size: int, rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Row]]:
    """Endless batches of mixed kinds; rows of like length share a batch, which saves padding."""
    kinds = PHASES[phase]
    while True:
        drawn = rng.choices(list(kinds), list(kinds.values()), k=8 * size)
        rows = sorted((row(kind, rng, tokenizer, phase == "hole") for kind in drawn), key=lambda row: len(row.ids))
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(chunks)
        yield from chunks


def views(picture: DrawnPicture) -> np.ndarray:
    """What the processor makes of a picture, faster: overview and tiles, (1 + tiles, 3, TILE, TILE)."""
    from PIL.Image import Resampling

    image = draw(picture)
    overview, array = np.asarray(image.resize((TILE, TILE), Resampling.BICUBIC)), np.asarray(image)
    height, width = array.shape[:2]
    tiles = array.reshape(height // TILE, TILE, width // TILE, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    scaled = np.concatenate([overview[None], tiles]).astype(np.float32) / 255
    return ((scaled - 0.5) / 0.5).transpose(0, 3, 1, 2)


def collate(rows: list[Row], pad_id: int) -> tuple[dict[str, Tensor], Tensor]:
    """The model's arguments, right-padded, and the loss weights (B, T - 1) of the predicted tokens."""
    width = max(len(row.ids) for row in rows)
    ids_BT, weight_BT = torch.full((len(rows), width), pad_id), torch.zeros(len(rows), width)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
        weight_BT[b, : len(row.ids)] = torch.tensor(row.weights)
    arguments = {"input_ids": ids_BT}
    if pictures := [row.picture for row in rows if row.picture is not None]:
        arrays = [views(picture) for picture in pictures]
        values = np.zeros((len(arrays), max(map(len, arrays)), 3, TILE, TILE), np.float32)
        for i, array in enumerate(arrays):
            values[i, : len(array)] = array
        arguments["pixel_values"] = torch.from_numpy(values)
        arguments["image_sizes"] = torch.tensor([[CELL * p.rows, CELL * p.columns] for p in pictures])
    return arguments, weight_BT[:, 1:]
