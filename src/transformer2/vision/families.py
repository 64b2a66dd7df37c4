"""The families of models that take pictures, one small class each; a family that is not here is refused by name.

A family is here once its swap test passes (tests/vision): other pictures, other answers. What families get wrong
without an error: positions of their own, features that were left out, an image id that is sampled.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoImageProcessor,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from transformer2.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Family", "Layout", "family_class", "load_family"]

_SETTINGS = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")  # of processors


@dataclass(frozen=True)
class Layout:
    """The place that a picture takes in a prompt.

    Attributes:
        tokens: Their number.
        grid: Rows and columns of them, for families whose positions have those axes.
    """

    tokens: int
    grid: tuple[int, int] | None = None


class Family(ABC):
    """What one family makes of a picture.

    Args:
        folder: Of the base.
        config: The base's.
        tokenizer: The base's.
        options: What readers of the base are told (`trust_remote_code`).

    Attributes:
        model_type: Of the config.
        image_id: What stands for a picture in the tokenizer's words.
        banned: Ids that stand for pictures and videos: never sampled, never scored.
        axes: Coordinates of a token's position: 1, or 3 (time, height, width).
        processor: The base's, which may prepare text as well.
        images: The part of it that prepares pictures.
        key: The same for bases that make the same tokens of a picture.
    """

    model_type: ClassVar[str]
    axes: ClassVar[int] = 1

    def __init__(
        self, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
    ) -> None:
        self.image_id = int(config.image_token_id)
        video_id = getattr(config, "video_token_id", None)
        self.banned = [self.image_id, *([] if video_id is None else [int(video_id)])]
        self.image_token = str(tokenizer.convert_ids_to_tokens(self.image_id))
        self.processor: Any = self._processor(folder, options)
        self.images: Any = getattr(self.processor, "image_processor", self.processor)
        settings = [str(getattr(self.processor, name, None)) for name in _SETTINGS]
        made_by = [self.model_type, settings, self.images.to_dict(), config.to_dict().get("vision_config")]
        self.key = hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _processor(self, folder: Path, options: Mapping[str, Any]) -> Any:
        return AutoProcessor.from_pretrained(str(folder), backend="pil", **options)  # the same pixels everywhere

    @abstractmethod
    def layout(self, size: tuple[int, int]) -> Layout:
        """The place that a picture of this size, (width, height) in pixels, takes in a prompt."""

    def pixels(self, image: Image) -> dict[str, Tensor]:
        """What the tower reads of one picture."""
        return dict(self.images(images=[image], return_tensors="pt"))

    def features(self, model: Any, pixels: Mapping[str, Tensor]) -> Tensor:
        """What the language model reads of one picture, (tokens, D); without a gradient."""
        with torch.no_grad():
            found = model.get_image_features(**pixels)
        found = getattr(found, "pooler_output", found)
        return found.flatten(0, -2) if isinstance(found, Tensor) else torch.cat([f.flatten(0, -2) for f in found])


class Llava(Family):
    """LLaVA 1.5: one square picture, always as many tokens."""

    model_type = "llava"

    def layout(self, size: tuple[int, int]) -> Layout:
        """See `Family.layout`."""
        width, height = size
        return Layout(int(self.processor._get_num_multimodal_tokens([[height, width]])["num_image_tokens"][0]))


class LlavaNext(Llava):
    """LLaVA 1.6: the whole picture, and tiles of it at a resolution that fits its shape."""

    model_type = "llava_next"


class Qwen2_5_VL(Family):
    """Qwen2.5-VL: a picture keeps its shape, and its tokens have positions in time, height and width (M-RoPE)."""

    model_type = "qwen2_5_vl"
    axes = 3

    def _processor(self, folder: Path, options: Mapping[str, Any]) -> Any:
        return AutoImageProcessor.from_pretrained(str(folder), backend="pil", **options)  # the whole one wants videos

    def layout(self, size: tuple[int, int]) -> Layout:
        """See `Family.layout`."""
        width, height = size
        side, within = self.processor.patch_size * self.processor.merge_size, self.processor.size
        pixels = {"min_pixels": within["shortest_edge"], "max_pixels": within["longest_edge"]}
        rows, columns = (n // side for n in smart_resize(height, width, side, **pixels))
        return Layout(rows * columns, (rows, columns))


_FAMILIES: dict[str, type[Family]] = {f.model_type: f for f in (Llava, LlavaNext, Qwen2_5_VL)}


def family_class(config: PretrainedConfig) -> type[Family] | None:
    """The family of a base that takes pictures; None for text alone, and for what can be used as if it were.

    Raises:
        DataError: It is of a family that is not known here, and cannot be loaded for text alone.
    """
    found, kind = _FAMILIES.get(config.model_type), type(config)
    if getattr(getattr(config, "vision_config", None), "model_type", None) == "pixtral":
        found = None  # LLaVA by its config, with tokens that end the rows of a picture
    its_own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if found is None and hasattr(config, "vision_config") and kind not in MODEL_FOR_CAUSAL_LM_MAPPING and not its_own:
        raise DataError(
            f"a base of the family {config.model_type} takes pictures in a way that is not known here; use LLaVA, "
            "LLaVA-NeXT or Qwen2.5-VL, or a base of text alone"
        )
    return found


def load_family(
    folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> Family | None:
    """The family of the base in a folder; arguments as of `Family`, None as of `family_class`.

    The tokenizer gets the processor's chat template, where that is in a file of its own, as it used to be.

    Raises:
        DataError: Its processor cannot be loaded.
    """
    made = family_class(config)
    if made is None:
        return None
    try:
        if (own := folder / "chat_template.json").is_file() and not (folder / "chat_template.jinja").is_file():
            template = json.loads(own.read_text(encoding="utf-8"))["chat_template"]
            named = isinstance(template, list)
            tokenizer.chat_template = {t["name"]: t["template"] for t in template} if named else template
        family = made(folder, config, tokenizer, options)
        family.layout((64, 64))
        return family
    except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as e:
        raise DataError(
            f"base {str(folder)!r} takes pictures, and its processor cannot be loaded ({one_line(e, 120)}); save the "
            f"model's own there: AutoProcessor.from_pretrained(ORIGINAL).save_pretrained({str(folder)!r})"
        ) from e
