"""One request to a self-adaptive model: what was asked, what was chosen for it, what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from transformer2.adaptive.chat import Chat
from transformer2.arguments import fits
from transformer2.data.prompts import known_ids, render
from transformer2.errors import DataError, LengthError, UserError, shown
from transformer2.rollout.base import Sampling
from transformer2.rollout.continuous import FinishReason, Row
from transformer2.rollout.ending import REPLACEMENT, Ending

__all__ = [
    "BASE",
    "AdaptiveAnswer",
    "Job",
    "Piece",
    "Selection",
    "TokenLogprob",
    "Use",
    "read_use",
    "stop_strings",
]

BASE = "base"
USUAL_ANSWER = 512  # tokens
Use = str | Mapping[str, float] | None


@dataclass(frozen=True)
class Selection:
    """What answers a request.

    Attributes:
        name: An expert's, "base", or "mix".
        weights: Expert -> mixing weight, z' = 1 + sum_k weights[k] (z_k - 1); none is the base. Where `base` has a
            weight too, z' = weights[base] + sum_k weights[k] z_k: the paper's raw mixtures.
        probabilities: Category -> probability, of a first pass that scores categories; None for others.
        first_pass: What the first pass wrote, or the category that it found likeliest; None without a first pass.
        averaged: True where the weights are means of others, which differ by matrix: as `use` they answer otherwise.
    """

    name: str
    weights: Mapping[str, float]
    probabilities: Mapping[str, float] | None = None
    first_pass: str | None = None
    averaged: bool | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token, its log-probability, and those of the likeliest tokens in its place."""

    token: str
    logprob: float
    likeliest: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class AdaptiveAnswer:
    """The answer to one prompt.

    Attributes:
        text: Up to EOS or a stop string.
        choice: What answered.
        finish_reason: "stop" (EOS, or a stop string), "length" (out of budget) or "cancelled".
        prompt_tokens: Tokens of the prompt, the chat template's included.
        completion_tokens: Sampled tokens, EOS included.
        seconds: Wall-clock seconds of `first_pass` and `second_pass`, in the company they were in.
        logprobs: Of the sampled tokens; empty unless asked for.
    """

    text: str
    choice: Selection
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: Mapping[str, float]
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class Piece:
    """A piece of an answer under way; the last one has the whole answer."""

    text: str
    answer: AdaptiveAnswer | None = None


@dataclass(eq=False)
class Job:
    """A request under way, made by `SelfAdaptive.start`.

    Attributes:
        chat: What was asked. It holds the pictures, without which their token ids mean nothing.
        prompt: Its token ids.
        use: What shall answer; None leaves it to the strategy.
        sampling: Temperature, nucleus and budget.
        ending: What ends the answer.
        seed: Of the draws.
        top_logprobs: How many of the likeliest tokens to note at each step; None notes no log-probabilities at all.
        choice: What answers, once that is chosen.
        answer: The answer, once it is whole.
        error: What went wrong, if anything did; there is no answer then.
        row: Its row of the batch: of the first pass, and of the answer once there is a choice.
        cancelled: Whether nobody waits for it any more.
    """

    chat: Chat
    prompt: Sequence[int]
    use: Use
    sampling: Sampling
    ending: Ending
    seed: int = 0
    top_logprobs: int | None = None
    choice: Selection | None = None
    answer: AdaptiveAnswer | None = None
    error: BaseException | None = None
    row: Row | None = field(default=None, repr=False)
    cancelled: bool = False

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self._chosen = time.perf_counter()
        self._given, self._window, self._read = "", 0, 0
        self._watched, self._begun = 0, [0] * len(self.ending.stop)

    @property
    def is_done(self) -> bool:
        """Whether it has an answer or an error."""
        return self.answer is not None or self.error is not None

    def result(self) -> AdaptiveAnswer:
        """The answer of a job that is done; or its error is raised."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None, "not done"
        return self.answer

    def cancel(self) -> None:
        """End it where it is and free its row; from any thread."""
        self.cancelled = True
        if self.row is not None:
            self.row.end("cancelled")

    def run(self, row: Row, choice: Selection | None = None) -> None:
        """Note the row that is run next; with a choice it is that of the answer."""
        self.row = row  # before the choice: other threads that see one read the answer's row
        if choice is not None:
            self.choice, self._chosen = choice, time.perf_counter()
        if self.cancelled:
            row.end("cancelled")

    def finish(self) -> None:
        """Make the answer of what has been drawn."""
        if self.row is not None and self.row.error is not None:
            self.error = self.row.error
            return
        row = None if self.choice is None else self.row  # None: it was cancelled before anything was chosen
        self.answer = AdaptiveAnswer(
            "" if row is None else row.text,
            self.choice or Selection(BASE, {}),
            "cancelled" if row is None or row.finish_reason is None else row.finish_reason,
            len(self.prompt),
            0 if row is None else len(row.tokens),
            {"first_pass": self._chosen - self._started, "second_pass": time.perf_counter() - self._chosen},
            () if self.top_logprobs is None else self.logprobs(),
        )

    def take(self) -> str:
        """What has become sure of the text since the last call: whole characters, and no beginning of a stop string."""
        if self.answer is not None:
            given, self._given = self._given, self.answer.text
            return self.answer.text.removeprefix(given)
        if self.choice is None or self.row is None:
            return ""
        tokens, texts = list(self.row.tokens), self.ending.texts
        before, after = texts([tokens[self._window : self._read], tokens[self._window :]])
        if len(after) <= len(before) or after.endswith(REPLACEMENT):
            return ""
        text = after[len(before) :]
        if self._holds_back(text):
            return ""
        self._window, self._read = self._read, len(tokens)
        self._given += text
        return text

    def _holds_back(self, text: str) -> bool:
        """Whether the text so far ends with what may become a stop string, or is one."""
        whole = self._given + text
        self._begun = self.ending.begun(whole[self._watched :], self._begun)
        self._watched = len(whole)
        return any(self._begun) or self.ending.holds_stop(whole)

    def logprobs(self, start: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of what has been drawn, from token `start` on; also while it is under way."""
        if self.choice is None or self.row is None:
            return []
        row, found = self.row, list[TokenLogprob]()
        for t in range(start, len(row.logprobs)):  # written last
            top = row.likeliest[t] if row.likeliest else []
            ids = [row.tokens[t], *(i for i, _ in top)]
            token, *others = _texts_behind(self.ending.tokenizer, row.tokens[max(0, t - 4) : t], ids)
            likeliest = list(zip(others, (value for _, value in top), strict=True))
            found.append(TokenLogprob(token, row.logprobs[t], likeliest))
        return found


def _texts_behind(tokenizer: Any, before: list[int], ids: Sequence[int]) -> list[str]:
    """What each of some tokens adds to a text that ends with `before`: read alone, many lose their leading space."""

    def read(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    first = read(before)
    if first.endswith(REPLACEMENT):  # a part of a character, which has four at most
        return [read([i]) for i in ids]
    both = [read([*before, i]) for i in ids]
    return [b[len(first) :] if b.startswith(first) else read([i]) for i, b in zip(ids, both, strict=True)]


def read_use(text: str) -> Use:
    """A model name as a server's or a flag's: `auto`, `base`, an expert's, or `mix:math=0.6,code=0.9`.

    Raises:
        UserError: A mixture that cannot be read.
    """
    if text == "auto":
        return None
    if not text.startswith("mix:"):
        return text
    parts = [part.partition("=") for part in text.removeprefix("mix:").split(",")]
    try:
        weights = {name.strip(): float(value) for name, _, value in parts}
    except ValueError as e:
        raise UserError(f"{text!r} is no mixture; write mix:math=0.6,code=0.9") from e
    if len(weights) < len(parts):
        raise UserError(f"{text!r} names an expert twice; give each one weight")
    return weights


def prompt_ids(chat: Chat, ids: Sequence[int] | None, tokenizer: Any) -> list[int]:
    """Token ids of a chat, or those that are given in its place; pictures are not decoded for it.

    Raises:
        DataError: There is a picture, and the base takes none.
        UserError: There are none, or one of those given is none of the model's or stands for a picture; it would fail a
            step that others share.
    """
    family = getattr(tokenizer, "family", None)
    if chat.images and family is None:
        raise DataError(
            "the prompt has a picture, and the base takes none; choose one that does (--base tiny_vision, or a LLaVA, "
            "LLaVA-NeXT or Qwen2.5-VL folder), or leave the picture out"
        )
    given: Any = getattr(ids, "tolist", lambda: ids)()
    known = known_ids(tokenizer)
    if given is not None and not (isinstance(given, Sequence) and all(fits(int, i) and 0 <= i < known for i in given)):
        raise UserError(f"ids must be a list of token ids from 0 to {known - 1}, not {shown(repr(given), 60)}")
    found = render(tokenizer, chat.example) if given is None else [*given]
    if ids is not None and family is not None and (banned := {*found} & {*family.banned}):
        token = tokenizer.convert_ids_to_tokens(min(banned))
        raise UserError(f"raw text holds {token!r}, and no picture for it; send pictures in a chat")
    if not found:
        raise UserError("an empty prompt cannot be completed; give it some text")
    return found


def answer_budget(prompt_tokens: int, max_new_tokens: int | None, longest: int, usual: int) -> int:
    """Tokens that an answer may have: those asked for, else what the model has room for, `usual` at most.

    Raises:
        LengthError: Prompt and answer are together longer than the model.
    """
    room = longest - prompt_tokens
    budget = min(room, usual) if max_new_tokens is None else max_new_tokens
    if room < max(1, budget):
        raise LengthError(
            f"the prompt has {prompt_tokens} tokens and the answer may have {max(1, budget)}, more than the {longest} "
            "of this model; shorten the prompt, or allow the answer fewer"
        )
    return budget


def stop_strings(stop: Any) -> list[str | int]:
    """What ends an answer, as a list: a string is one.

    Raises:
        UserError: It is neither a string nor a list of strings, or an empty one.
    """
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list | tuple | set) or not all(fits(int, s) or (isinstance(s, str) and s) for s in found):
        raise UserError(f"stop must be a string that is not empty, or a list of them, not {shown(repr(stop), 60)}")
    return [s if isinstance(s, str) else int(s) for s in found]


def check_draws(
    max_new_tokens: Any, seed: Any, top_logprobs: Any, temperature: Any, top_p: Any
) -> tuple[int | None, int, int | None]:
    """The first three as integers; refuse numbers that no row could be drawn with and fail a step that others share.

    Raises:
        UserError: The message names the argument.
    """
    max_new_tokens, seed, top_logprobs = map(plain, (max_new_tokens, seed, top_logprobs))
    for name, value, high in (("max_new_tokens", max_new_tokens, 2**31), ("top_logprobs", top_logprobs, 1000)):
        if value is not None and (type(value) is not int or not 0 <= value <= high):
            raise UserError(f"{name} must be a whole number from 0 to {high}, not {value!r}")
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if not fits(float, value):
            raise UserError(f"{name} must be a number, not {shown(repr(value), 60)}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed!r}")
    return max_new_tokens, seed, top_logprobs


def plain(value: Any) -> Any:
    """An integer of numpy's as Python's; anything else as it is."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
