"""One way to build a prompt: chat template -> text -> ids, with the BOS that the template writes and no other.

Training, validation, test, both passes of an adaptation: all prompts come from `render`, and the ids that it returns
are the ones that are sampled from and scored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from transformer2.errors import ConfigError, DataError
from transformer2.types import Example, PromptBatch

Messages = list[dict[str, str]]
# Some templates print today's date: prompts would differ tomorrow. This is the date that Llama 3.1's falls back to.
DATE = "2024-07-26"


def template_variables(given: Mapping[str, Any] | None = None, date: str = DATE) -> dict[str, Any]:
    """What a chat template is given beside the messages.

    Args:
        given: `data.chat_template_kwargs`.
        date: What the template takes for today, YYYY-MM-DD.

    Raises:
        ConfigError: No such date, or a variable that `render` sets itself.
    """
    try:
        today = datetime.strptime(date, "%Y-%m-%d")
    except (TypeError, ValueError) as e:
        raise ConfigError(f"data.template_date {date!r} is no date of the form {DATE}") from e
    ours = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"tools", "documents"}
    for name in given or {}:
        if name in ours | {"messages", "strftime_now"}:
            raise ConfigError(
                f"data.chat_template_kwargs.{name} cannot be set: prompts are built in one way; leave it out"
            )
    return {"strftime_now": today.strftime, **(given or {})}


_DEFAULTS = template_variables()


def render(
    tokenizer: PreTrainedTokenizerBase, example: Example, variables: Mapping[str, Any] | None = _DEFAULTS
) -> list[int]:
    """Token ids of one prompt, ending where the model is to answer.

    The template's text carries its own BOS, so it is tokenised without special tokens. Base models without a chat
    template read the messages' contents, separated by blank lines, after the BOS that their tokenizer adds, if any.

    Args:
        tokenizer: The base model's.
        example: The question.
        variables: See `template_variables`; None leaves the chat template out.

    Raises:
        DataError: The chat template refuses the messages.
    """
    messages = [dict(m) for m in example.messages]
    if tokenizer.chat_template is None or variables is None:
        ids = list(tokenizer("\n\n".join(m["content"] for m in messages) + "\n\n")["input_ids"])
        while ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text; a prompt goes on
            ids.pop()
        return ids
    return list(tokenizer(_text(tokenizer, messages, variables), add_special_tokens=False)["input_ids"])


def _text(tokenizer: PreTrainedTokenizerBase, messages: Messages, variables: Mapping[str, Any]) -> str:
    """The prompt as text. Where a template knows no system role, its text goes before the first user message."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))
    except (TemplateError, TypeError, ValueError) as e:  # Gemma's template refuses a system role
        if not system:
            raise DataError(f"the tokenizer's chat template refuses a prompt ({e}); correct the template") from e
        text = ""
    if system.strip() in text:  # other templates leave it out without a word
        return text
    first, *rest = [m for m in messages if m["role"] != "system"]
    return _text(tokenizer, [{**first, "content": f"{system}\n\n{first['content']}"}, *rest], variables)


def collate(
    examples: Sequence[Example],
    ids: Sequence[list[int]],
    pad_id: int,
    row_ids: Sequence[int] = (),
    positions: Sequence[int] = (),
) -> PromptBatch:
    """A left-padded batch of rendered prompts; see `PromptBatch` for the numbers."""
    width = max(map(len, ids))
    input_ids_BP = torch.full((len(ids), width), pad_id, dtype=torch.long)
    mask_BP = torch.zeros_like(input_ids_BP)
    for row, prompt in enumerate(ids):
        input_ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BP[row, width - len(prompt) :] = 1
    return PromptBatch(tuple(examples), input_ids_BP, mask_BP, tuple(row_ids), tuple(positions))
