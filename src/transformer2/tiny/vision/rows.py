"""What pre-training reads of pictures: questions about them, their rows and their pixels."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from transformer2.tiny.pretrain import Row
from transformer2.tiny.vision import world
from transformer2.tiny.vision.pictures import CELL, DrawnPicture, draw
from transformer2.tiny.vision.processor import IMAGE, NUM_TOKENS, TILE


def train_question(kind: str, rng: random.Random) -> world.ReadingQuestion:
    """A question of reading or knowing about a picture of the train split."""
    while True:
        question = world.QUESTIONS[kind](rng)
        if world.split_of(question.picture) == "train":
            return question


def seen_row(turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, picture: DrawnPicture) -> Row:
    """A row of one or more (question, answer) about a picture."""
    return Row.of_turns(turns, tokenizer, IMAGE * NUM_TOKENS[picture.rows, picture.columns], picture)


def views(picture: DrawnPicture) -> np.ndarray:
    """What the processor makes of a picture, faster: overview and tiles, (1 + tiles, 3, TILE, TILE)."""
    from PIL.Image import Resampling

    image = draw(picture)
    overview, array = np.asarray(image.resize((TILE, TILE), Resampling.BICUBIC)), np.asarray(image)
    height, width = array.shape[:2]
    tiles = array.reshape(height // TILE, TILE, width // TILE, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    scaled = np.concatenate([overview[None], tiles]).astype(np.float32) / 255
    return ((scaled - 0.5) / 0.5).transpose(0, 3, 1, 2)


def picture_arguments(pictures: Sequence[DrawnPicture]) -> dict[str, Tensor]:
    """The model's arguments for the pictures of a batch; none without pictures."""
    if not pictures:
        return {}
    arrays = [views(picture) for picture in pictures]
    values = np.zeros((len(arrays), max(map(len, arrays)), 3, TILE, TILE), np.float32)
    for i, array in enumerate(arrays):
        values[i, : len(array)] = array
    sizes = [[CELL * picture.rows, CELL * picture.columns] for picture in pictures]
    return {"pixel_values": torch.from_numpy(values), "image_sizes": torch.tensor(sizes)}
