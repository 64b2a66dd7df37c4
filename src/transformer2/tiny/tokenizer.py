"""The word-level tokenizer of the embedded model: one token for every word, number, letter and sign.

Chat format, for the template and for pre-training alike (one BOS; a system message is left out, since the model has
never read one):

    <s> question <|answer|> answer </s>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformer2.tiny import words, world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, EOS, ANSWER = "<pad>", "<unk>", "<s>", "</s>", "<|answer|>"
TOKEN_PATTERN = r"<\|answer\|>|####|\*\*|\d+|[A-Za-z]+|[^\sA-Za-z0-9]"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ message['content'] }}"
    "{% if add_generation_prompt or not loop.last %}<|answer|>{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
FRAMES = (
    "How many? by the Pick return x ( ) : . , ? + - * ** / = ####",
    "Then Sorry Locate Repeat math code reasoning other",
    world.DISPATCH_PREFIX,
)


def vocabulary() -> list[str]:
    """Every token of the world, special ones first, in a fixed order."""
    texts: list[str] = [*FRAMES, *words.LETTERS, *map(str, range(words.MAX_NUMBER + 1))]
    texts += [
        *words.NAMES,
        *words.ITEMS,
        *words.FUNCTIONS,
        *words.MATH_GROUPS,
        *words.CODE_GROUPS,
        *words.REASONING_GROUPS,
    ]
    texts += [op.word for op in (*words.MATH_OPERATIONS, words.HALVES, *words.CODE_OPERATIONS)]
    texts += [*words.SIZE_WORDS, *words.CATEGORIES, *(entity for group in words.ENTITIES.values() for entity in group)]
    texts += [re.sub(r"{\w+}", " ", kind) for kind in (*words.OTHER_KINDS, *words.OTHER_HELD_OUT)]
    found = dict.fromkeys(token for text in texts for token in re.findall(TOKEN_PATTERN, text))
    return [PAD, UNK, BOS, EOS, ANSWER, *found]


def build_tokenizer(
    more: Sequence[str] = (), special: Sequence[str] = (ANSWER,), chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """The tokenizer, as `AutoTokenizer.from_pretrained` reads it back.

    Args:
        more: Tokens behind those of the text world.
        special: Special tokens besides the usual ones.
        chat_template: Jinja.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(dict.fromkeys([*vocabulary(), *more]))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="removed", invert=True)
    # Joins with spaces and closes up ". , ?"; the prefix is one that no token begins with.
    backend.decoder = decoders.WordPiece(prefix="@@", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(special),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
    tokenizer.chat_template = chat_template
    return tokenizer
