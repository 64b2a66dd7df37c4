"""Requests of OpenAI's API, and how they are asked of the model.

A field that is not known here, or has a value under which the answer would be another one, is refused: an answer that
ignores what was asked looks right and is not.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, Field, field_validator, model_validator

from transformer2.adaptive.chat import Chat, PictureSource, check_characters
from transformer2.adaptive.model import SelfAdaptive
from transformer2.adaptive.request import answer_budget
from transformer2.data.prompts import known_ids, plain_ids
from transformer2.errors import nearest, shown
from transformer2.seeds import row_seed
from transformer2.serving.faults import Fault
from transformer2.serving.guard import Limits

__all__ = ["AddExpert", "ChatRequest", "CompletionRequest"]

# Bookkeeping of the caller's; no answer depends on it.
IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
# Fields whose neutral values change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"), ()),
}
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
# All lists end at their first wrong element: one error for each of a million takes seconds and gigabytes.
_SOME = Field(min_length=1, fail_fast=True)
Ids = Annotated[list[Annotated[int, Field(ge=0)]], _SOME]
Parts = Annotated[list[dict[str, Any]], Field(max_length=10_000, fail_fast=True)]


class _Closed(BaseModel, strict=True, extra="allow"):
    """Refuses the first field that it does not know; `extra="forbid"` would collect an error for each."""

    @model_validator(mode="after")
    def _has_no_other_field(self) -> Self:
        for name in self.model_extra or {}:
            raise ValueError(f"unknown field {shown(repr(name), 60)}{nearest(name, type(self).model_fields)}")
        return self


class Message(BaseModel, strict=True, extra="allow"):
    """One message of a chat. Fields that are empty (as in answers that are sent back) are fine."""

    role: str
    content: str | Parts | None = None  # parts are read by `Chat.of`

    @model_validator(mode="after")
    def _has_nothing_else(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value not in (None, [], {}, ""):
                raise ValueError(f"{shown(name, 60)} of a message is not supported; leave it out")
        if self.content is None:
            raise ValueError(f"the content of a message of role {self.role!r} must be text, or a list of parts")
        return self


class StreamOptions(_Closed):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against eavesdroppers; there is none


class _Request(BaseModel, strict=True, extra="allow"):
    """What chats and completions have in common."""

    model: str = Field(max_length=10_000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value is None or name in IGNORED:
                continue
            if name not in NEUTRAL:
                raise ValueError(f"unknown field {shown(repr(name), 60)}{nearest(name, type(self).model_fields)}")
            if value not in NEUTRAL[name]:
                raise ValueError(f"{name} is not supported; leave it out")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true; leave them out")
        return self

    @property
    def answers(self) -> int:
        """How many are asked for."""
        return self.n or 1

    def options(self, limits: Limits, top_logprobs: int | None, before: int = 0) -> list[dict[str, Any]]:
        """Arguments of `SelfAdaptive.start` for each of the n answers to a prompt; `before` are those to others.

        Raises:
            Fault: They may be longer than the server allows.
        """
        if limits.tokens is not None and (self.max_tokens or 0) > limits.tokens:
            message = f"max_tokens {self.max_tokens} is more than this server's {limits.tokens}; lower it"
            raise Fault(400, message, "invalid_value", "max_tokens")
        # Drawn here where none is given: two requests of one prompt are two draws.
        seed = secrets.randbits(63) if self.seed is None else self.seed
        common = {
            "use": self.model,
            "max_new_tokens": self.max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "stop": self.stop or [],
            "top_logprobs": top_logprobs,
        }
        return [{**common, "seed": row_seed(seed, before + i)} for i in range(self.n or 1)]


class ChatRequest(_Request):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=10_000, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs are for logprobs: true; set it too")
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
            self.max_tokens = self.max_completion_tokens
        return self

    def starts(self, model: SelfAdaptive, limits: Limits, source: PictureSource) -> list[dict[str, Any]]:
        """Arguments of `SelfAdaptive.start` for every answer."""
        roles = {"developer": "system"}
        messages = [{"role": roles.get(m.role, m.role), "content": m.content} for m in self.messages]
        chat = Chat.of(messages, source)
        if (pixels := chat.pixels) > limits.pixels:
            size = f"{pixels / 1e6:.3g} million pixels, more than this server's {limits.pixels / 1e6:g} million"
            message = f"the request has {size}; scale the picture down, or show fewer"
            raise Fault(400, message, "invalid_value", "messages")
        top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return [{"prompt": chat, **options} for options in self.options(limits, top_logprobs)]


class CompletionRequest(_Request):
    """Body of POST /v1/completions: text to continue, without a chat template."""

    prompt: str | Ids | Annotated[list[str], _SOME] | Annotated[list[Ids], _SOME]
    logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("prompt")
    @classmethod
    def _as_list(cls, prompt: Any) -> Any:
        prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        if not all(prompts):
            raise ValueError("an empty prompt cannot be completed; give it some text")
        return prompts

    @property
    def answers(self) -> int:
        """n to a prompt."""
        return len(self.prompt) * (self.n or 1)

    def starts(self, model: SelfAdaptive, limits: Limits, source: PictureSource) -> list[dict[str, Any]]:
        """Arguments of `SelfAdaptive.start` for every answer, n to a prompt."""
        found: list[dict[str, Any]] = []
        tokenizer, prompts = model.tokenizer, cast(list[Any], self.prompt)
        for prompt in prompts:
            if isinstance(prompt, str):
                check_characters(prompt)
                text, ids = prompt, plain_ids(tokenizer, prompt)
            elif max(prompt) < known_ids(tokenizer):
                answer_budget(len(prompt), self.max_tokens, model.longest, model.usual_answer)  # before it is decoded
                text, ids = tokenizer.decode(prompt), prompt
            else:
                message = f"there is no token {max(prompt)}; ids are 0 to {known_ids(tokenizer) - 1}"
                raise Fault(400, message, "invalid_value", "prompt")
            asked = Chat(({"role": "user", "content": text},))  # for the first pass; it may be white space
            options = self.options(limits, self.logprobs, len(found))
            found += [{"prompt": asked, "ids": ids, **of_one} for of_one in options]
        return found


class AddExpert(_Closed):
    """Body of POST /v1/experts."""

    name: str
    path: str = Field(min_length=1, max_length=1000)
