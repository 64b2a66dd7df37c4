"""One way to build a prompt: chat template -> text -> ids, with the BOS that the template writes and no other.

Training, validation, test, both passes of an adaptation: all prompts come from `render`, and the ids that it returns
are the ones that are sampled from and scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from transformer2.errors import DataError
from transformer2.types import Example, PromptBatch

Messages = list[dict[str, str]]


def render(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of one prompt, ending where the model is to answer.

    The template's text carries its own BOS, so it is tokenised without special tokens. Base models without a chat
    template read the messages' contents, separated by blank lines, after the BOS that their tokenizer adds, if any.

    Raises:
        DataError: The chat template refuses the messages.
    """
    messages = [dict(m) for m in example.messages]
    if tokenizer.chat_template is None:
        ids = list(tokenizer("\n\n".join(m["content"] for m in messages) + "\n\n")["input_ids"])
        while ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text; a prompt goes on
            ids.pop()
        return ids
    return list(tokenizer(_text(tokenizer, messages), add_special_tokens=False)["input_ids"])


def _text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The prompt as text. Where a template knows no system role, its text goes before the first user message."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as e:  # Gemma's template refuses a system role
        if not system:
            raise DataError(f"the tokenizer's chat template refuses a prompt ({e}); mend the template") from e
        text = ""
    if system.strip() in text:  # other templates leave it out without a word
        return text
    first, *rest = [m for m in messages if m["role"] != "system"]
    return _text(tokenizer, [{**first, "content": f"{system}\n\n{first['content']}"}, *rest])


def collate(
    examples: Sequence[Example], ids: Sequence[list[int]], pad_id: int, row_ids: Sequence[int] = ()
) -> PromptBatch:
    """A left-padded batch of rendered prompts."""
    width = max(map(len, ids))
    input_ids_BP = torch.full((len(ids), width), pad_id, dtype=torch.long)
    mask_BP = torch.zeros_like(input_ids_BP)
    for row, prompt in enumerate(ids):
        input_ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BP[row, width - len(prompt) :] = 1
    return PromptBatch(tuple(examples), input_ids_BP, mask_BP, tuple(row_ids))
