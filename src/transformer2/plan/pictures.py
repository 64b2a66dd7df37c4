"""What a picture costs, from a base's config alone: tokens of a prompt, and a pass through the tower.

Counted is the largest picture that a family takes apart in full: LLaVA-NeXT's best tiling without padding, and
Qwen2.5-VL's `longest_edge` of pixels. Tokens then cost what tokens cost (memory.py); the tower runs one picture at a
time, without gradients, and what it gives is kept in host memory (vision/embedding.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PictureShape", "picture_shape"]

LONGEST_EDGE = 28 * 28 * 1280  # pixels of a picture of Qwen2.5-VL, where its processor's config is not there to say


@dataclass(frozen=True)
class PictureShape:
    """The largest picture, and the tower that it goes through.

    Letters as in ModelShape, of the tower: D hidden size, I of its MLP.
    """

    tokens: int  # that the language model reads
    patches: int  # that the tower reads, of all tiles, class tokens included
    patch_values: int  # numbers of one patch: pixels x channels x frames
    D: int
    I: int  # noqa: E741
    beside: int  # D's of a patch that are there beside its three I's in the MLP; measured, see tests/plan
    rotary: bool  # whether attention turns q and k, in fp32

    def attention(self, b: int) -> int:
        """D's of a patch in attention, where a number has b bytes; measured, too."""
        return (11 if b == 4 else 18) if self.rotary else 10


def picture_shape(config: Any, folder: Path | None) -> PictureShape | None:
    """The largest picture of a base; None for a base, or of a family, that takes none here.

    Args:
        config: transformers' config of the base.
        folder: Where its processor's config is; None where only the base's is known.
    """
    vision: Any = getattr(config, "vision_config", None)
    if config.model_type in ("llava", "llava_next"):
        size, patch = vision.image_size, vision.patch_size
        side = size // patch
        whole = side**2 + (config.vision_feature_select_strategy == "full")
        tiles, tokens = 1, whole
        if config.model_type == "llava_next":
            grids = [(height // size, width // size) for height, width in config.image_grid_pinpoints]
            tiles += max(rows * columns for rows, columns in grids)
            tokens += max(rows * side * (columns * side + 1) for rows, columns in grids)  # a token ends each row
        values, patches = 3 * patch**2, tiles * (side**2 + 1)
        return PictureShape(tokens, patches, values, vision.hidden_size, vision.intermediate_size, 7, rotary=False)
    if config.model_type == "qwen2_5_vl":
        tokens = _longest_edge(folder) // (vision.patch_size * vision.spatial_merge_size) ** 2
        values = 3 * vision.patch_size**2 * vision.temporal_patch_size
        patches = tokens * vision.spatial_merge_size**2
        return PictureShape(tokens, patches, values, vision.hidden_size, vision.intermediate_size, 4, rotary=True)
    return None


def _longest_edge(folder: Path | None) -> int:
    says: Mapping[str, Any] = {}
    try:
        for name in ("preprocessor_config.json", "processor_config.json"):  # older, and transformers 5's
            if folder is not None and (folder / name).is_file():
                whole = json.loads((folder / name).read_text(encoding="utf-8"))
                says = whole.get("image_processor") or whole
        return int(says.get("max_pixels") or (says.get("size") or {}).get("longest_edge") or LONGEST_EDGE)
    except (OSError, ValueError, TypeError, AttributeError):
        return LONGEST_EDGE  # whoever loads the processor says what is wrong with it
