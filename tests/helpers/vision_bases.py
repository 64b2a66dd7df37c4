"""Small random models that see pictures, one per family, saved as a folder that loads like a downloaded one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from PIL import Image
from torch import Tensor

from transformer2 import tiny
from transformer2.errors import DataError
from transformer2.pictures import PictureBytes
from transformer2.tiny.tokenizer import build_tokenizer

IMAGE = {"llava": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|image_pad|>"}
FAMILIES = tuple(IMAGE)
SIZE, PATCH = 32, 16  # of the square that a tower of LLaVA's sees, and of its patches

_TEMPLATE = (
    "{{{{ bos_token }}}}{{% for message in messages %}}{{% if message['role'] != 'system' %}}"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}"
    "{{% if message['role'] == 'assistant' %}}{{{{ eos_token }}}}"
    "{{% elif add_generation_prompt or not loop.last %}}<|answer|>{{% endif %}}"
    "{{% endif %}}{{% endfor %}}"
)


def make_vision(
    folder: Path,
    family: str = "llava_next",
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    pinpoints: tuple[tuple[int, int], ...] = ((32, 64), (64, 32), (64, 64)),
) -> Path:
    """A model with the embedded text model's tokenizer, the token(s) of a picture added, and its processor.

    Args:
        folder: Where to; made.
        family: One of `FAMILIES`.
        seed: Of the weights, which are large enough for a picture to matter.
        hidden: Size of the language model.
        layers: Of the language model.
        dtype: Of the weights.
        pinpoints: (height, width) that LLaVA-NeXT may cut into tiles.
    """
    tokenizer = build_tokenizer()
    added = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    image = "<|vision_start|><|image_pad|><|vision_end|>" if family == "qwen2_5_vl" else IMAGE[family]
    tokenizer.add_tokens(added if family == "qwen2_5_vl" else [image], special_tokens=True)
    tokenizer.chat_template = _TEMPLATE.format(image=image)
    tokenizer.model_max_length = 1024
    tiles = [list(size) for size in pinpoints]
    config = _config(family, tokenizer, hidden, layers, tiles)
    torch.manual_seed(seed)
    model = tf.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3 if "embed" in name else 0.1)
    model.generation_config = tf.GenerationConfig.from_pretrained(tiny.model_path())
    model.to(dtype).save_pretrained(folder)
    processor = _processor(family, tokenizer, tiles)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(family: str, tokenizer: Any, hidden: int, layers: int, pinpoints: list[list[int]]) -> tf.PretrainedConfig:
    half = hidden // 8  # of a head: the frequencies that Qwen2.5-VL shares among time, height and width
    text: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    token_ids = tokenizer.convert_tokens_to_ids
    if family == "qwen2_5_vl":
        rope, third = {"rope_type": "default", "rope_theta": 1e4}, 3 * half // 8
        return tf.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": {**rope, "mrope_section": [half - 2 * third, third, third]}},
            vision_config=dict(
                depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=8, window_size=32,
                out_hidden_size=hidden, fullatt_block_indexes=[1],
            ),
            image_token_id=token_ids("<|image_pad|>"), video_token_id=token_ids("<|video_pad|>"),
            vision_start_token_id=token_ids("<|vision_start|>"), vision_end_token_id=token_ids("<|vision_end|>"),
            tie_word_embeddings=False,
        )  # fmt: skip
    tower = dict(
        model_type="clip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, image_size=SIZE, patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    both: dict[str, Any] = dict(
        text_config={"model_type": "llama", **text}, vision_config=tower, image_token_index=token_ids(IMAGE[family]),
        image_seq_length=(SIZE // PATCH) ** 2, tie_word_embeddings=False,
    )  # fmt: skip
    if family == "llava":
        return tf.LlavaConfig(**both)
    return tf.LlavaNextConfig(**both, image_grid_pinpoints=pinpoints)


def _processor(family: str, tokenizer: Any, pinpoints: list[list[int]]) -> Any:
    """What turns pictures into tensors: a whole processor, but of Qwen2.5-VL (videos need torchvision) its half."""
    if family == "qwen2_5_vl":
        return tf.Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
        )
    square = dict(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    named = dict(patch_size=PATCH, vision_feature_select_strategy="default", image_token=IMAGE[family])
    options: dict[str, Any] = dict(
        tokenizer=tokenizer, num_additional_image_tokens=1, chat_template=tokenizer.chat_template
    )
    if family == "llava":
        return tf.LlavaProcessor(image_processor=tf.LlavaImageProcessorPil(**square), **named, **options)
    pictures = tf.LlavaNextImageProcessorPil(**square, image_grid_pinpoints=pinpoints)
    return tf.LlavaNextProcessor(image_processor=pictures, **named, **options)


def drawn(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture of coarse random squares, (width, height) in RGB."""
    pixels = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


class TurnsBad(PictureBytes):
    """A picture that can be checked, and not opened afterwards."""

    def open(self) -> Image.Image:
        raise DataError(f"picture {self.name} has turned bad")


def inputs(folder: Path, pictures: list[Image.Image], text: str = "How many?") -> dict[str, Tensor]:
    """What the family's own processor makes of one question about each picture; all pictures of one size."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if (folder / "processor_config.json").is_file():
        processor = tf.AutoProcessor.from_pretrained(folder)
        batch = processor(text=[prompt] * len(pictures), images=pictures, return_tensors="pt", add_special_tokens=False)
        return dict(batch)
    features = tf.AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    counts = (features["image_grid_thw"].prod(-1) // 4).tolist()
    texts = [prompt.replace(IMAGE["qwen2_5_vl"], IMAGE["qwen2_5_vl"] * count) for count in counts]
    ids = tokenizer(texts, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    image = tokenizer.convert_tokens_to_ids(IMAGE["qwen2_5_vl"])
    return {**ids, **features, "mm_token_type_ids": (ids["input_ids"] == image).int()}
