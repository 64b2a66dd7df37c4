"""How pictures enter a model: features take the places of their tokens, and no image id is ever predicted.

A picture is encoded alone, so that its features do not depend on its company, and once: z never touches the tower, so
they are the same at every step. They are kept in host memory for as long as somebody holds the picture, up to
CACHE_BYTES of those used last.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from transformer2.errors import ConfigError, DataError, UserError, one_line
from transformer2.vision.families import Family, Layout
from transformer2.vision.tokens import FIRST, PLACES, Block, block_of

__all__ = ["BANNED", "CACHE_BYTES", "PictureInputs", "attach_pictures", "pictures_of"]

CACHE_BYTES = 4 * 2**30
BANNED = -3e4  # finite in 16 bits: minus infinity would make a full KL NaN
_READERS, _AHEAD = 8, 32  # threads that decode pictures (Pillow lets others run meanwhile); pictures they are ahead
_APART = "the base's processor and config do not belong together; save both from one model"


def attach_pictures(model: Any, family: Family) -> None:
    """Attach a `PictureInputs` to a model of a family, as `model.picture_inputs`; once."""
    if pictures_of(model) is None:
        model.picture_inputs, model.position_axes = PictureInputs(model, family), family.axes


def pictures_of(policy: Any) -> PictureInputs | None:
    """The `PictureInputs` of a model, with or without PEFT's wrapper; None for a base of text alone."""
    return getattr(policy.get_base_model() if hasattr(policy, "get_base_model") else policy, "picture_inputs", None)


class PictureInputs:
    """The input embedding and the output head of a model that takes pictures, and the features of pictures.

    Args:
        model: A transformers model of the family.
        family: How it takes pictures.

    Attributes:
        on_any_rank: Whether a condition holds on any rank, where ranks must run equally many passes through the tower;
            all ranks call it together. By default this rank alone counts.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family = model, family
        self.banned = family.banned
        self.on_any_rank: Callable[[bool], bool] = bool
        self._checked = False
        self._features: WeakKeyDictionary[Block, Tensor] = WeakKeyDictionary()  # those used last at its end
        embedding, head = cast(Any, model).get_input_embeddings(), cast(Any, model).get_output_embeddings()
        # Not hooks of torch's: Lightning takes those away between two uses of DeepSpeed.
        embedding.forward, head.forward = partial(self._embed, embedding.forward), partial(self._logits, head.forward)

    def __deepcopy__(self, memo: Any) -> PictureInputs:
        """Itself: PEFT's `modules_to_save` copies the embedding or the head, and not the model with them."""
        return self

    @property
    def _bytes(self) -> int:
        return sum(features.nbytes for features in self._features.values())

    def _embed(self, lookup: Callable[[Tensor], Tensor], ids_BT: Tensor) -> Tensor:
        """The input embedding, with the features of pictures in their places."""
        seen_BT = ids_BT >= FIRST
        unseen, seen = torch.stack([torch.isin(ids_BT, ids_BT.new_tensor(self.banned)).any(), seen_BT.any()]).tolist()
        if unseen:
            raise UserError(
                f"a prompt holds {self.family.image_token!r} and no picture for it; give the Example its images"
            )
        if not self.on_any_rank(seen):
            return lookup(ids_BT)
        embedded_BTD = lookup(ids_BT.masked_fill(seen_BT, 0))
        ids_N = ids_BT[seen_BT] - FIRST
        numbers_P = (ids_N // PLACES).unique()  # sorted
        features = self._of([block_of(number) for number in numbers_P.tolist()])
        if not features:
            return embedded_BTD
        table = torch.cat([f.to(embedded_BTD.device, embedded_BTD.dtype) for f in features])
        starts_P = torch.tensor([0, *(len(f) for f in features[:-1])], device=ids_BT.device).cumsum(0)
        index_N = starts_P[torch.searchsorted(numbers_P, ids_N // PLACES)] + ids_N % PLACES
        return embedded_BTD.masked_scatter(seen_BT[..., None], table[index_N])

    def _logits(self, predict: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """The output head, with ids that stand for pictures out of reach."""
        logits = predict(hidden)
        banned = [i for i in self.banned if i < logits.shape[-1]]  # some heads have no row for it
        return logits.index_fill(-1, torch.tensor(banned, dtype=torch.long, device=logits.device), BANNED)

    def _of(self, blocks: list[Block]) -> list[Tensor]:
        """Features of pictures, (tokens, D) each."""
        missing = [block for block in blocks if block not in self._features]
        fresh: dict[Block, Tensor] = {}
        with ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(missing), _AHEAD):
                some = missing[start : start + _AHEAD]
                for block, pixels in zip(some, readers.map(self._pixels, some), strict=True):
                    self.on_any_rank(True)
                    fresh[block] = self._encode(pixels, block.layout, block.picture.name)
        while self.on_any_rank(False):  # other ranks are not done, and the tower's weights may be in shards
            self._encode_empty((64, 64))
        found = [fresh[block] if block in fresh else self._features.pop(block) for block in blocks]
        self._features.update(zip(blocks, found, strict=True))
        while self._bytes > CACHE_BYTES and len(self._features) > 1:
            del self._features[next(iter(self._features))]
        return found

    def check(self) -> None:
        """Encode empty pictures, one of each shape that is cut into other tiles; once.

        Raises:
            ConfigError: Prompts have other places for them than they have features; the message says what to do.
        """
        tilings = [getattr(of, "image_grid_pinpoints", None) or () for of in (self.family.images, self.model.config)]
        sizes = {(96, 64), (40, 72), *((width, height) for some in tilings for height, width in some)}
        for size in [] if self._checked else sorted(sizes):
            try:
                self._encode_empty(size)
            except (RuntimeError, ValueError) as e:
                if isinstance(e, ConfigError | torch.OutOfMemoryError):
                    raise
                raise ConfigError(f"an empty picture of {size} cannot be encoded ({one_line(e, 120)}): {_APART}") from e
        self._checked = True

    def _encode_empty(self, size: tuple[int, int]) -> None:
        from PIL import Image

        pixels = self.family.pixels(Image.new("RGB", size))
        self._encode(pixels, self.family.layout(size), f"of {size[0]} x {size[1]} pixels")

    def _pixels(self, block: Block) -> dict[str, Tensor]:
        if block.picture.digest() != block.digest:
            raise DataError(f"picture {block.picture.name} is another one than when the run began; run it again")
        return self.family.pixels(block.picture.open())

    def _encode(self, pixels: dict[str, Tensor], layout: Layout, name: str) -> Tensor:
        device, dtype = cast(Any, self.model).device, cast(Any, self.model).dtype
        pixels = {key: x.to(device, dtype if x.is_floating_point() else None) for key, x in pixels.items()}
        found = self.family.features(self.model, pixels).cpu()
        if len(found) != layout.tokens:  # the rest, or another picture's, would stand in its places
            raise ConfigError(f"picture {name} is {len(found)} features and {layout.tokens} tokens: {_APART}")
        return found
