"""Answers in the shapes of OpenAI's API, whole and in pieces, with what was chosen beside them (`transformer2`)."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from transformer2.adaptive.request import Job, TokenLogprob
from transformer2.rollout.ending import REPLACEMENT

__all__ = ["DONE", "ChatAnswer", "TextAnswer", "choice_of", "event"]

DONE = b"data: [DONE]\n\n"
NO_PROBABILITY = -9999.0  # what OpenAI writes for a logarithm of zero, which JSON has no number for


class ChatAnswer:
    """The answer to POST /v1/chat/completions.

    Args:
        model: The name that was asked for.
        with_usage: stream: count the tokens in a last event.
        per_prompt: Jobs to a prompt, which usage counts once.
    """

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, with_usage: bool, per_prompt: int) -> None:
        self.with_usage, self.per_prompt = with_usage, per_prompt
        self._sent, self._offsets = Counter[int](), defaultdict[int, _Offset](_Offset)  # answer -> tokens sent
        self.head = {"id": f"{self.prefix}{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def body(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": i,
                **self._content(job.result().text),
                "logprobs": self._logprobs(i, job),
                "finish_reason": job.result().finish_reason,
                "transformer2": choice_of(job),
            }
            for i, job in enumerate(jobs)
        ]
        return {
            **self.head,
            "object": self.whole,
            "choices": choices,
            "usage": self._usage(jobs),
            "transformer2": choices[0]["transformer2"],
        }

    def opening(self, i: int, job: Job) -> bytes:
        """The event that says what answers."""
        return self._event(i, {"role": "assistant", "content": ""}, job)

    def text(self, i: int, text: str, job: Job) -> bytes:
        """An event with a piece of text, and the log-probabilities of what has been drawn since the last one."""
        return self._event(i, {"content": text}, None, self._logprobs(i, job))

    def ending(self, i: int, job: Job) -> bytes:
        """The event that says why answer i is over; a stop string's tokens have log-probabilities, and no text."""
        return self._event(i, {}, job, self._logprobs(i, job), job.result().finish_reason)

    def usage(self, jobs: Sequence[Job]) -> bytes:
        """The event that counts the tokens."""
        said = {"usage": self._usage(jobs), "transformer2": choice_of(jobs[0])}
        return event({**self.head, "object": self.piece, "choices": [], **said})

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"delta": delta}

    def _event(
        self, i: int, delta: dict[str, Any], job: Job | None, logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": i, **self._delta(delta), "logprobs": logprobs, "finish_reason": finish_reason}
        extra = {"usage": None} if self.with_usage else {}
        said = {} if job is None else {"transformer2": choice_of(job)}
        return event({**self.head, "object": self.piece, "choices": [choice], **extra, **said})

    def _logprobs(self, i: int, job: Job) -> dict[str, Any] | None:
        """Those of answer i that have not been sent; None where nothing is to be said."""
        tokens = _without_eos(job, self._sent[i])
        if job.top_logprobs is None or (self._sent[i] and not tokens):
            return None
        self._sent[i] += len(tokens)
        return self._listed(i, job, tokens)

    def _listed(self, i: int, job: Job, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        def entry(token: str, logprob: float) -> dict[str, Any]:
            # Half a character has bytes that its text does not show.
            data = None if REPLACEMENT in token else list(token.encode())
            return {"token": token, "logprob": max(logprob, NO_PROBABILITY), "bytes": data}

        content = [
            {**entry(t.token, t.logprob), "top_logprobs": [entry(*likely) for likely in t.likeliest]} for t in tokens
        ]
        return {"content": content, "refusal": None}

    def _usage(self, jobs: Sequence[Job]) -> dict[str, int]:
        prompt = sum(job.result().prompt_tokens for job in jobs[:: self.per_prompt])
        completion = sum(job.result().completion_tokens for job in jobs)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class TextAnswer(ChatAnswer):
    """The answer to POST /v1/completions."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"text": delta.get("content", "")}

    def _listed(self, i: int, job: Job, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        def likeliest(token: TokenLogprob) -> dict[str, float]:
            found: dict[str, float] = {}
            for name, value in token.likeliest:  # of several ids that read alike, as halves of characters do, the first
                found.setdefault(name, max(value, NO_PROBABILITY))
            return found

        return {
            "tokens": [t.token for t in tokens],
            "token_logprobs": [max(t.logprob, NO_PROBABILITY) for t in tokens],
            "top_logprobs": [likeliest(t) for t in tokens],
            "text_offset": [self._offsets[i].add(job) for _ in tokens],
        }


class _Offset:
    """Where the next token of an answer begins in its text; the parts of a character begin where it does."""

    def __init__(self) -> None:
        self._window = self._read = self._end = self._characters = 0  # tokens, as in Job.take

    def add(self, job: Job) -> int:
        """The offset of the next token."""
        assert job.row is not None
        found, self._end = self._characters, self._end + 1
        tokens = job.row.tokens[self._window : self._end]
        before, after = job.ending.texts([tokens[: self._read - self._window], tokens])
        if len(after) > len(before) and not after.endswith(REPLACEMENT):
            self._characters += len(after) - len(before)
            self._window, self._read = self._read, self._end
        return found


def choice_of(job: Job) -> dict[str, Any] | None:
    """What answers a job, and the seconds it took once it is done; None while it is not known."""
    if job.choice is None:
        return None
    seconds = None if job.answer is None else {name: round(value, 4) for name, value in job.answer.seconds.items()}
    return {
        "choice": job.choice.name,
        "weights": dict(job.choice.weights),
        "probabilities": None if job.choice.probabilities is None else dict(job.choice.probabilities),
        "first_pass": job.choice.first_pass,
        **({"averaged": True} if job.choice.averaged else {}),
        "seconds": seconds,
    }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def _without_eos(job: Job, start: int) -> list[TokenLogprob]:
    """Log-probabilities from token `start` on, without the token that ended the answer and that its text lacks."""
    tokens = job.logprobs(start)
    drawn = [] if job.row is None else job.row.tokens[start : start + len(tokens)]
    return tokens[:-1] if drawn and drawn[-1] in job.ending.eos_ids else tokens
