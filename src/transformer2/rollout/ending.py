"""What ends a completion: token ids, and strings in its text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from transformer2.errors import ConfigError, UserError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character, or not yet, are decoded as
TAIL_SLACK = 8  # tokens decoded beyond the bytes of a stop string: special tokens, halves of characters


class Ending:
    """What ends a completion, and its text up to there.

    Args:
        tokenizer: Decodes completions; its pad id (else its EOS id) fills finished rows.
        eos_ids: Token ids that end a completion.
        stop: What else ends one: token ids, and strings. A completion ends with the token that completes a string; its
            ids and mask keep that token, its text ends before the string (as vLLM's and OpenAI's does).

    Attributes:
        eos_ids: Those given and those of `stop`: its ids, and the ids of special tokens named there.
        stop: The strings of `stop` that are looked for in decoded text.

    Raises:
        UserError: No EOS ids.
        ConfigError: `stop` names what can end nothing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_ids: Iterable[int], stop: Iterable[str | int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        more, self.stop = _ids_and_strings(tokenizer, list(stop))
        self.eos_ids = sorted({*eos_ids, *more})
        if not self.eos_ids:
            raise UserError(
                "the tokenizer names no EOS token, so no completion could ever end; set tokenizer.eos_token"
            )
        pad = tokenizer.pad_token_id
        self.pad_id: int = self.eos_ids[0] if pad is None else int(pad)
        self._completing: dict[int, bool] = {}  # token -> whether it can be the last of a stop string

    def texts(self, rows: list[list[int]]) -> list[str]:
        """Sampled ids as text, without special tokens."""
        # A tokenizer that cleans up would eat spaces that were sampled: `x != 3` would be verified as `x!= 3`.
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def holds_stop(self, text: str) -> bool:
        """Whether a stop string is in the text, but for a last character that further tokens may complete."""
        final = text.rstrip(REPLACEMENT)
        return any(string in final for string in self.stop)

    def begun(self, text: str, before: Sequence[int]) -> list[int]:
        """Of each stop string, how many of its characters the text so far ends with.

        Args:
            text: What has come since.
            before: The same numbers before it came; zeros at first.
        """
        return [_matched(stop, text, count) for stop, count in zip(self.stop, before, strict=True)]

    def up_to_stop(self, ids: list[int]) -> tuple[int, str]:
        """How many of these tokens complete the first stop string, and the text before it."""
        count = 1 + bisect_left(range(1, len(ids)), True, key=lambda n: self.holds_stop(*self.texts([ids[:n]])))
        (whole,) = self.texts([ids[:count]])
        return count, whole[: min(whole.find(string) for string in self.stop if string in whole)]

    def stopped(self, ids_BT: Tensor) -> Tensor:
        """Rows whose text so far ends with a stop string, by the tokens that can hold one."""
        rows = [b for b, token in enumerate(ids_BT[:, -1].tolist()) if self._may_complete(token)]
        longest = max(len(string.encode()) for string in self.stop)
        tails = ids_BT[rows, -longest - TAIL_SLACK :].tolist()
        texts = self.texts(tails)
        stopped_B = torch.zeros(len(ids_BT), dtype=torch.bool)
        stopped_B[rows] = torch.tensor([self.holds_stop(text) for text in texts], dtype=torch.bool)
        return stopped_B.to(ids_BT.device)

    def _may_complete(self, token: int) -> bool:
        """Whether a token can be the last of a stop string: it spares the decoding of most rows at most steps."""
        if token not in self._completing:
            text = f" {self.texts([[token]])[0]}"  # decoding may strip a space
            # A part of a character; or the token after one that is none, and final by that.
            partial = REPLACEMENT in text or any(string[-1] == REPLACEMENT for string in self.stop)
            self._completing[token] = partial or any(string[-1] in text for string in self.stop)
        return self._completing[token]


def _matched(pattern: str, text: str, count: int) -> int:
    """The longest prefix of a pattern that a text ends with, `count` characters of which stand before it.

    By Knuth, Morris and Pratt: time does not depend on what the pattern and the text are.
    """
    borders = _borders(pattern)
    for character in text:
        while count and (count == len(pattern) or pattern[count] != character):
            count = borders[count - 1]
        count += pattern[count] == character
    return count


@lru_cache(256)
def _borders(pattern: str) -> list[int]:
    """Of each prefix of a pattern, its longest end that it begins with."""
    borders = [0]
    for character in pattern[1:]:
        count = borders[-1]
        while count and pattern[count] != character:
            count = borders[count - 1]
        borders.append(count + (pattern[count] == character))
    return borders


def _ids_and_strings(tokenizer: PreTrainedTokenizerBase, stop: list[str | int]) -> tuple[list[int], list[str]]:
    """`stop` as token ids and strings. Decoded text shows no special tokens, so that one named there is its id."""
    special: dict[str, int] = {}
    if stop:
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids, strings = [], []
    for end in stop:
        if isinstance(end, int):
            if not 0 <= end < len(tokenizer):
                raise ConfigError(f"stop: this tokenizer has no token {end}; ids are 0 to {len(tokenizer) - 1}")
            ids.append(end)
        elif end in special:
            ids.append(special[end])
        elif hidden := [token for token in special if token in end]:
            raise ConfigError(
                f"stop {end!r} holds the special token {hidden[0]!r}, which text does not show; "
                "name the token alone, or text without it"
            )
        else:
            strings.append(end)
    return ids, strings
