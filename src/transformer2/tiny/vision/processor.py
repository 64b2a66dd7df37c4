"""The processor of the embedded vision model: the text world's tokenizer with a few more words, and LLaVA-NeXT's tiles.

A picture of 16 x 32, 32 x 16 or 32 x 32 pixels (height x width) becomes one overview and two or four tiles of 16 x 16,
with patches of 8 x 8: 14, 16 or 24 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformer2.tiny.tokenizer import ANSWER, build_tokenizer
from transformer2.tiny.vision.pictures import CELL, COLOURS, GRIDS

if TYPE_CHECKING:
    from transformers.models.llava_next import LlavaNextProcessor

IMAGE = "<image>"
TILE = 2 * CELL
PINPOINTS = [[CELL * rows, CELL * columns] for rows, columns in GRIDS]
NUM_TOKENS = {(rows, columns): 4 + rows * (columns + 1) for rows, columns in GRIDS}  # overview, cells, row ends
NEW_TOKENS = (IMAGE, "Read", "Spell", "sign", "say", *COLOURS)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if add_generation_prompt or not loop.last %}<|answer|>{% endif %}"
    "{% elif message['role'] == 'assistant' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}{% endif %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def build_processor() -> LlavaNextProcessor:
    """The processor, as `AutoProcessor.from_pretrained` reads it back."""
    from transformers.models.llava_next import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    images = LlavaNextImageProcessorPil(
        image_grid_pinpoints=PINPOINTS,
        size={"height": TILE, "width": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(NEW_TOKENS, (ANSWER, IMAGE), CHAT_TEMPLATE),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
