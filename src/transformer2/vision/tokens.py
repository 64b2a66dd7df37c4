"""Token ids that stand for one particular picture.

In a prompt, each of the tokens that a picture takes has an id of its own, beyond any vocabulary:

    id = FIRST + number of the picture * 2^20 + its place among the picture's tokens

So ids alone carry pictures through batches, padding, repeats, shared beginnings and caches, just as they carry text:
two prompts are the same where their text and their pictures are. A model's input embedding puts the features of the
picture in their places (embedding.py). Numbers are given out by this process, as names are interned: the same content
has the same number for as long as somebody holds one of its references, and another process has other numbers.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from transformer2.errors import DataError, one_line
from transformer2.pictures import Picture
from transformer2.vision.families import Family, Layout

__all__ = [
    "FIRST",
    "PLACES",
    "Block",
    "as_image_ids",
    "block_of",
    "picture_tokens",
    "pictures_in",
    "positions",
]

FIRST = 2**40
PLACES = 2**20


@dataclass(eq=False)
class Block:
    """The ids of one picture, for one family.

    Attributes:
        number: Of the picture.
        layout: Its tokens.
        picture: Where it is.
        digest: Of its content.
    """

    number: int
    layout: Layout
    picture: Picture
    digest: str


_blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()
_by_content: WeakValueDictionary[tuple[str, str], Block] = WeakValueDictionary()
_numbers, _lock = count(), threading.Lock()


def picture_tokens(family: Family, picture: Picture) -> list[int]:
    """The ids that a picture has in a prompt, as long as `picture` lives.

    Raises:
        DataError: The picture cannot be used; the message names it.
    """
    held: dict[str, Block] = picture.__dict__.setdefault("_blocks", {})
    if family.key not in held:
        size = picture.size()
        try:
            layout = family.layout(size)
        except (ValueError, ZeroDivisionError) as e:
            raise DataError(
                f"picture {picture.name} of {size[0]} x {size[1]} pixels does not suit the base: {one_line(e, 120)}"
            ) from e
        if not 0 < layout.tokens < PLACES:
            raise DataError(
                f"picture {picture.name} of {size[0]} x {size[1]} pixels would be {layout.tokens} tokens; crop it"
            )
        digest = picture.digest()
        with _lock:
            block = _by_content.get((family.key, digest))
            if block is None:
                block = Block(next(_numbers), layout, copy.copy(picture), digest)
                _by_content[family.key, digest] = _blocks[block.number] = block
        held[family.key] = block
    block = held[family.key]
    start = FIRST + block.number * PLACES
    return list(range(start, start + block.layout.tokens))


def block_of(number: int) -> Block:
    """The picture of a number.

    Raises:
        DataError: Nobody holds its reference any more.
    """
    block = _blocks.get(number)
    if block is None:
        raise DataError("the picture of a prompt is gone: keep its Example for as long as its token ids are in use")
    return block


def pictures_in(ids: Sequence[int]) -> list[Picture]:
    """The pictures of a prompt, in their order; errors as of `block_of`."""
    return [block_of((i - FIRST) // PLACES).picture for i in ids if i >= FIRST and not (i - FIRST) % PLACES]


def as_image_ids(ids: Sequence[int], image_id: int, once: bool = False) -> list[int]:
    """A prompt in ids that its tokenizer knows: the image id in the places of pictures; `once` for each of them."""
    return [image_id if i >= FIRST else i for i in ids if not once or i < FIRST or not (i - FIRST) % PLACES]


def positions(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Positions of tokens in left-padded prompts: they count real tokens, as in generation.

    Returns:
        int64 (B, T), or (B, T, 3) for models whose positions have three axes: time, height, width. The next token of a
        row is at one more than its last, along each axis.
    """
    counted_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    axes = getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, "position_axes", 1)
    if axes == 1:
        return counted_BT
    found_BT3 = counted_BT[..., None].repeat(1, 1, axes)
    ids_BT = ids_BT * mask_BT  # under the padding of shared prompts stand tokens of others
    for b in (ids_BT >= FIRST).any(-1).nonzero()[:, 0].tolist():
        row = ids_BT[b].tolist()
        for t in [t for t, i in enumerate(row) if i >= FIRST and not (i - FIRST) % PLACES]:
            layout = block_of((row[t] - FIRST) // PLACES).layout
            assert layout.grid is not None
            rows, columns = layout.grid
            at, place = found_BT3[b, t, 0].clone(), torch.arange(layout.tokens, device=ids_BT.device)
            found_BT3[b, t + layout.tokens :] -= layout.tokens - max(rows, columns)
            grid = torch.stack([torch.zeros_like(place), place // columns, place % columns], dim=-1)
            found_BT3[b, t : t + layout.tokens] = at + grid
    return found_BT3
