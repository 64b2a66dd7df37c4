"""Phase 1 of pre-training: the vision tower names the cells of pictures, the projector puts them where text is.

Linear heads on the tower's features name every cell's thing, colour and slot: a probe, not part of the model. The
projector learns to give for a slot the sum of the text embeddings of its words ("red", "cherry", "A" and the sign
behind it), so that the language model finds words that it knows: what a caption says, without a caption.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, PreTrainedTokenizerFast

from transformer2.tiny import words
from transformer2.tiny.vision.pictures import COLOURS, MAX_SLOTS, THINGS, DrawnPicture
from transformer2.tiny.vision.rows import train_question, views

_NAMES = (THINGS, tuple(COLOURS), words.LETTERS[:MAX_SLOTS])  # of what the heads tell; index 0 means: no sign here
_ALIGNMENT_WEIGHT = 20.0


def cell_labels(picture: DrawnPicture) -> np.ndarray:
    """Thing, colour, slot (from 1; 0 outside signs) and whether it is the last one, (tiles, 4, 4), in tower order."""
    grid = np.zeros((picture.rows, picture.columns, 4), np.int64)
    for sign in picture.signs:
        for slot, thing in enumerate(sign.things):
            what = (1 + THINGS.index(thing), 1 + tuple(COLOURS).index(sign.colour), 1 + slot)
            grid[sign.row, sign.column + slot] = (*what, slot == len(sign.things) - 1)
    return grid.reshape(picture.rows // 2, 2, picture.columns // 2, 2, 4).swapaxes(1, 2).reshape(-1, 4, 4)


class TowerTraining:
    """The loss of phase 1 on pictures without end.

    Args:
        model: The model; its tower and projector are trained.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model.model
        width = self.model.config.vision_config.hidden_size
        self.heads = nn.ModuleList([nn.Linear(width, 1 + len(names)) for names in _NAMES])
        table = self.model.language_model.embed_tokens.weight.detach().clone()
        self.constant = table[:, 0].mean()  # coordinate 0 is one constant in all embeddings (tiny/init.py)
        table[:, 0] = 0
        self.embeddings = []
        for names in _NAMES:
            rows = table[tokenizer.convert_tokens_to_ids(list(names))]
            self.embeddings.append(torch.cat([torch.zeros_like(rows[:1]), rows]))
        self.comma, self.stop = table[tokenizer.convert_tokens_to_ids([",", "."])]

    def parameters(self) -> list[nn.Parameter]:
        """What phase 1 trains."""
        modules = (self.model.vision_tower, self.model.multi_modal_projector, self.heads)
        return [parameter for module in modules for parameter in module.parameters()]

    def loss(self, rng: random.Random, count: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on `count` fresh pictures, and the heads' accuracy on slots, before the step."""
        pictures = [train_question(kind, rng).picture for kind in rng.choices(("reading", "knowing"), k=count)]
        labels = [cell_labels(picture) for picture in pictures]
        is_tile_V = torch.tensor([i > 0 for label in labels for i in range(1 + len(label))])
        label_N4 = torch.from_numpy(np.concatenate(labels)).flatten(0, 1)
        views_VCHW = torch.from_numpy(np.concatenate([views(picture) for picture in pictures]))

        layer = self.model.config.vision_feature_layer
        features_VPD = self.model.vision_tower(views_VCHW, output_hidden_states=True).hidden_states[layer][:, 1:]
        cells_ND = features_VPD[is_tile_V].flatten(0, 1)
        loss, right = torch.zeros(()), {}
        for k, key in enumerate(("thing", "colour", "slot")):
            logits = self.heads[k](cells_ND)
            loss = loss + nn.functional.cross_entropy(logits, label_N4[:, k])
            hits = (logits.argmax(-1) == label_N4[:, k])[label_N4[:, 0] > 0]
            right[key] = float(hits.float().mean())

        projected_VPE = self.model.multi_modal_projector(features_VPD)
        wanted_VPE = torch.zeros_like(projected_VPE)
        wanted_VPE[is_tile_V] = self._captions(label_N4).unflatten(0, (-1, 4))
        wanted_VPE[..., 0] = self.constant
        return loss + _ALIGNMENT_WEIGHT * nn.functional.mse_loss(projected_VPE, wanted_VPE), right

    def _captions(self, label_N4: Tensor) -> Tensor:
        """The sum of the embeddings of a slot's words, (N, E); 0 where no sign is."""
        total_NE = sum(table[label_N4[:, k]] for k, table in enumerate(self.embeddings))
        behind_NE = torch.where(label_N4[:, 3:] > 0, self.stop, self.comma)
        return total_NE + behind_NE * (label_N4[:, :1] > 0)
