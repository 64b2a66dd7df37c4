"""One way to build a prompt: chat template -> text -> ids, with the BOS that the template writes and no other.

Training, validation, test, both passes of an adaptation: all prompts come from `render`, and the ids that it returns
are the ones that are sampled from and scored. A picture's tokens have ids of their own (vision/tokens.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from transformer2.errors import ConfigError, DataError, one_line, shown
from transformer2.types import Example, PromptBatch, text_of
from transformer2.vision import Family, picture_tokens

Messages = list[dict[str, Any]]
# Some templates print today's date: prompts would differ tomorrow. This is the date that Llama 3.1's falls back to.
DATE = "2024-07-26"


@dataclass(frozen=True)
class ChatTemplate:
    """How a tokenizer's chat template is applied.

    Args:
        variables: What it is given in addition to the messages (`data.chat_template_kwargs`).
        date: The date given as today's, YYYY-MM-DD.

    Raises:
        ConfigError: No such date, or a variable that is set here.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        try:
            datetime.strptime(self.date, "%Y-%m-%d")
        except (TypeError, ValueError) as e:
            raise ConfigError(f"data.template_date {self.date!r} is not a date of the form {DATE}") from e
        ours = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"tools", "documents"}
        for name in self.variables:
            if name in ours | {"messages", "strftime_now"}:
                raise ConfigError(
                    f"data.chat_template_kwargs.{name} cannot be set: prompts are built in one way; leave it out"
                )

    def text(self, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
        """The prompt as text, up to where the model is to answer."""
        template = tokenizer.get_chat_template(tools=self.variables.get("tools"))
        if "strftime_now" in template:
            template = self._clock() + template
        options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(messages, **options, **self.variables))

    def _clock(self) -> str:
        """A macro in place of transformers' `strftime_now`: functions do not pass into its templates."""
        today, replaced = datetime.strptime(self.date, "%Y-%m-%d"), ""
        for letter in "aAbBcdfFGHIjmMpSTuUVwWxXyY":
            value = today.strftime(f"%{letter}")
            replaced += f"|replace('%{letter}', '{value}')|replace('%-{letter}', '{value.lstrip('0') or 0}')"
        return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


_PINNED = ChatTemplate()


def render(tokenizer: PreTrainedTokenizerBase, example: Example, template: ChatTemplate | None = _PINNED) -> list[int]:
    """Token ids of one prompt, ending where the model is to answer.

    The template's text carries its own BOS, so it is tokenised without special tokens. Base models without a chat
    template read the messages' contents, separated by blank lines, after the BOS that their tokenizer adds, if any.

    Args:
        tokenizer: The base model's.
        example: The question.
        template: How the chat template is applied; None leaves it out.

    Raises:
        DataError: The chat template refuses the messages, or the base does not take pictures as they are given.
    """
    family: Family | None = getattr(tokenizer, "family", None)
    if family is not None:
        return _render_with_pictures(tokenizer, family, example, template)
    if example.images:
        raise DataError(
            f"{example.id or 'the prompt'} has a picture, and the base takes none; choose one that does (LLaVA, "
            "LLaVA-NeXT, Qwen2.5-VL), or leave the picture out"
        )
    messages = [{**m, "content": text_of(m)} for m in example.messages]
    if tokenizer.chat_template is None or template is None:
        return plain_ids(tokenizer, "\n\n".join(m["content"] for m in messages) + "\n\n")
    return _ids(tokenizer, _text(tokenizer, messages, template), add_special_tokens=False)


def _render_with_pictures(
    tokenizer: PreTrainedTokenizerBase, family: Family, example: Example, template: ChatTemplate | None
) -> list[int]:
    messages = _in_parts(example)
    said = [p["text"].strip() for m in messages for p in m["content"] if p["type"] == "text"]
    if tokenizer.chat_template is None or template is None:
        parts = [[family.image_token if p["type"] == "image" else p["text"] for p in m["content"]] for m in messages]
        ids = plain_ids(tokenizer, "\n\n".join("\n".join(texts) for texts in parts) + "\n\n")
    else:
        text = _text(tokenizer, messages, template)
        as_python = "{'type':" in text and not any("{'type':" in words for words in said)
        if left_out := [words for words in said if as_python or words not in text]:
            raise DataError(
                f"the tokenizer's chat template leaves out {shown(left_out[0], 40)!r}: it knows no messages in parts; "
                "save the chat template of the model's processor beside the tokenizer"
            )
        # As transformers' processors do: LLaVA-NeXT's template leaves the BOS to the tokenizer.
        whole = tokenizer.bos_token is None or text.startswith(tokenizer.bos_token)
        ids = _ids(tokenizer, text, add_special_tokens=False) if whole else plain_ids(tokenizer, text)
    found = sum(i in family.banned for i in ids)
    if not found == ids.count(family.image_id) == len(example.images):
        raise DataError(
            f"{example.id or 'the prompt'} has {len(example.images)} pictures and {found} times "
            f"{family.image_token!r}; leave that out of texts: the chat template puts it where a picture is"
        )
    pictures = iter(example.images)
    rows = (picture_tokens(family, next(pictures)) if i == family.image_id else [i] for i in ids)
    return [i for row in rows for i in row]


def _in_parts(example: Example) -> Messages:
    """Messages whose contents are lists of parts; pictures without a part stand before the last user's text.

    Raises:
        DataError: A part is of another type.
    """
    messages: Messages = []
    for m in example.messages:
        content = m["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else [dict(part) for part in content]
        messages.append({**m, "content": parts})
    kinds = {part["type"] for m in messages for part in m["content"]}
    if unknown := kinds - {"text", "image"}:
        raise DataError(f"{example.id or 'the prompt'} has a part of type {min(unknown)!r}; use text and image")
    if "image" in kinds:
        return messages
    for m in reversed(messages):
        if m["role"] == "user":
            m["content"] = [{"type": "image"}] * len(example.images) + m["content"]
            break
    return messages


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that is to be continued as it is, without a chat template."""
    ids = _ids(tokenizer, text)
    while ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        ids.pop()
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """Token ids of text.

    Raises:
        DataError: The model has no embedding for one of them.
    """
    ids = list(tokenizer(text, **options)["input_ids"])
    beyond = max(ids, default=0)
    if beyond >= getattr(tokenizer, "embedded", beyond + 1):
        raise DataError(
            f"a prompt holds {tokenizer.convert_ids_to_tokens(beyond)!r}, token {beyond} of the tokenizer, and the "
            f"base has {tokenizer.embedded}; leave it out of texts and chat template, or use the model's own tokenizer"
        )
    return ids


def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many token ids, from 0 on, both the tokenizer and the model have."""
    return min(len(tokenizer), getattr(tokenizer, "embedded", len(tokenizer)))


def _text(tokenizer: PreTrainedTokenizerBase, messages: Messages, template: ChatTemplate) -> str:
    """The prompt as text. Where a template knows no system role, its text goes before the first user message."""
    system = "\n\n".join(text_of(m) for m in messages if m["role"] == "system")
    try:
        text = template.text(tokenizer, messages)
    except Exception as e:  # whatever a template's code may raise; Gemma's refuses a system role
        if not system:
            raise DataError(
                f"the tokenizer's chat template refuses a prompt ({one_line(e)}); correct the template"
            ) from e
        text = ""
    others = [m for m in messages if m["role"] != "system"]
    said = system.strip() and any(system.strip() in text_of(m) for m in others)  # by somebody else, too
    left_out = system.strip() not in text  # as other templates do silently
    if said and not left_out:
        with suppress(Exception):  # of a template that wants a system message, and so shows it
            left_out = text == template.text(tokenizer, others)
    if not left_out:
        return text
    first, *rest = others
    before, content = f"{system}\n\n", first["content"]
    content = before + content if isinstance(content, str) else [{"type": "text", "text": before}, *content]
    return _text(tokenizer, [{**first, "content": content}, *rest], template)


def open_turn_end(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int], stop: Sequence[str] = ()) -> str | None:
    """What the chat template writes after an answer, where that ends no completion; else None.

    A model that was trained with such a template says it (Llama-3's <|eot_id|>, ChatML's <|im_end|>) and runs on.

    Args:
        tokenizer: Whose template is looked at.
        eos_ids: Token ids that end a completion.
        stop: Strings that end one.
    """
    rest, ids = _after_answer(tokenizer)
    if not ids or ids[0] in eos_ids or any(string in rest for string in stop):
        return None
    token = tokenizer.added_tokens_decoder.get(ids[0])
    return rest.splitlines()[0] if token is None else str(token)


def turn_end(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int], bare: bool = False) -> int:
    """The token that a solution ends with: what the chat template writes after an answer, else the tokenizer's EOS.

    Args:
        tokenizer: Whose template is looked at.
        eos_ids: Token ids that end a completion: the turn's end is one of them, or answers would run on.
        bare: Whether prompts are built without the chat template.
    """
    ids = [] if bare else _after_answer(tokenizer)[1]
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id in eos_ids else []
    return next(i for i in (*ids[:1], *own, *eos_ids) if i in eos_ids)


def _after_answer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """What the chat template writes after an answer, as text and ids; nothing where there is no template."""
    answer = "forty-two"
    exchange: Messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": answer}]
    if getattr(tokenizer, "family", None) is not None:
        exchange = _in_parts(Example("", tuple(exchange), ""))
    try:
        text = str(tokenizer.apply_chat_template(exchange, tokenize=False))
    except Exception:  # no template, one that asks for more than an exchange, or whatever its code may raise
        return "", []
    rest = text.rpartition(answer)[2].strip()
    return rest, list(tokenizer(rest, add_special_tokens=False)["input_ids"])


def solution_ids(tokenizer: PreTrainedTokenizerBase, example: Example, text: str | None) -> list[int]:
    """A solution as the model would write it after the prompt, without the end of the turn.

    It is tokenised by itself, as completions are sampled: the prompt's tokens stay what they are.

    Args:
        tokenizer: The base model's.
        example: Whose solution it is.
        text: The solution.

    Raises:
        DataError: There is none, or it holds a special token, which text does not show and a verifier does not see.
    """
    ids = list(tokenizer(text or "", add_special_tokens=False)["input_ids"])
    if not ids:
        raise DataError(f"{example.id} has no solution; correct or drop the row, or set model.objective: reinforce")
    if special := {*ids} & {*tokenizer.all_special_ids, *getattr(getattr(tokenizer, "family", None), "banned", ())}:
        token = tokenizer.convert_ids_to_tokens(min(special))
        raise DataError(f"{example.id}: to this tokenizer the solution holds {token!r}; correct or drop the row")
    return ids


def collate(
    examples: Sequence[Example],
    ids: Sequence[Sequence[int]],
    pad_id: int,
    row_ids: Sequence[int] = (),
    positions: Sequence[int] = (),
) -> PromptBatch:
    """A left-padded batch of rendered prompts; see `PromptBatch` for the numbers."""
    rows = [torch.tensor(prompt, dtype=torch.long) for prompt in ids]
    input_ids_BP = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
    mask_BP = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return PromptBatch(tuple(examples), input_ids_BP, mask_BP, tuple(row_ids), tuple(positions))
