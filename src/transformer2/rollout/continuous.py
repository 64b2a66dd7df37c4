"""Continuous batching with one z per row: requests join and leave a running batch between two tokens.

All rows stand right-aligned in one key-value cache. A request that joins is run through the model by itself (with those
that join beside it), its cache is padded on the left to the width of the others, or theirs to its; when rows have left,
the columns that nobody uses any more are cut off. A row's z is a row of the z of every matrix (svf/rows.py), so that
requests under different experts, mixtures and the base share every forward pass.

What a row draws depends on its own seed and its own tokens alone: the same request gives the same tokens in any company
(up to the rounding of batched matrix products, as in hf.py).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from transformer2.arguments import Count, expected, fits, written
from transformer2.errors import ConfigError, UserError
from transformer2.halving import is_out_of_memory
from transformer2.rollout.base import Sampling
from transformer2.rollout.ending import Ending
from transformer2.rollout.hf import COMPACT_BELOW, choose_tokens
from transformer2.rollout.prefill import PREFILL_TOKENS, Prefilled, can_join, next_logits, prefill
from transformer2.svf.open_rows import Rows
from transformer2.svf.rows import check_only_z

__all__ = ["ContinuousBatch", "Row"]

Deltas = Mapping[nn.Module, Tensor]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(eq=False)
class Row:
    """One request, and what has been drawn for it.

    Attributes:
        prompt: Token ids.
        deltas: z - 1 of every SVF layer, fp32 (r,).
        sampling: Temperature, nucleus and budget.
        ending: What ends the completion.
        seed: Of the draws.
        top_logprobs: How many of the likeliest tokens to note at each step.
        tokens: Sampled ids so far, EOS included.
        logprobs: Their log-probabilities under the model itself, whatever the temperature and nucleus.
        likeliest: At each step the likeliest (id, log-probability), where asked for.
        finish_reason: Why the completion ended; None while it is under way.
        error: What went wrong, where `finish_reason` is "error".
    """

    prompt: Sequence[int]
    deltas: Deltas
    sampling: Sampling
    ending: Ending
    seed: int = 0
    top_logprobs: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        """Draw the row's random numbers, one per token."""
        generator = torch.Generator().manual_seed(self.seed)
        self.uniforms = torch.rand(self.sampling.max_new_tokens, generator=generator).tolist()

    @property
    def size(self) -> int:
        """Columns of the cache that it can come to need."""
        return len(self.prompt) + self.sampling.max_new_tokens

    @property
    def text(self) -> str:
        """What has been drawn, up to the stop string where there is one."""
        (text,) = self.ending.texts([self.tokens])
        return self.ending.up_to_stop(self.tokens)[1] if self.ending.holds_stop(text) else text

    def take(self, token: int, logprob: float) -> None:
        """Add a token; it may be the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.ending.eos_ids or (
            self.ending.stop and bool(self.ending.stopped(torch.tensor([self.tokens])))
        ):
            self.finish_reason = "stop"
        elif len(self.tokens) == self.sampling.max_new_tokens:
            self.finish_reason = "length"

    def end(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """End it as it is, unless it has ended."""
        if self.finish_reason is None:
            self.finish_reason, self.error = reason, error


class ContinuousBatch:
    """Rows under way and rows that wait; used by one thread at a time.

    Args:
        policy: A model with SVF layers.
        max_rows: Rows under way at a time.
        max_tokens: Rows x columns of the cache at most; a longer row runs alone.

    Raises:
        ConfigError: A limit that is no whole number of at least 1.
        UserError: The active adapter has `modules_to_save`, under which all rows would run.
    """

    def __init__(self, policy: nn.Module, max_rows: int = 64, max_tokens: int = 65536) -> None:
        for name, value in (("max_rows", max_rows), ("max_tokens", max_tokens)):
            if not fits(Count, value):
                raise ConfigError(f"{name} must be {expected(Count)}, not {written(value)}")
        check_only_z(policy)
        self.policy, self.max_rows, self.max_tokens = policy, max_rows, max_tokens
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # in the order of the cache; some may have ended
        self.cache: DynamicCache | None = None
        self._mask_BT = self._position_B1 = torch.empty(0, dtype=torch.long)
        self._deltas: dict[nn.Module, Tensor] = {}

    def submit(self, row: Row) -> None:
        """Let a row wait for its turn."""
        self.waiting.append(row)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not any(row.finish_reason is None for row in self.rows)

    @torch.no_grad()
    def step(self) -> None:
        """Draw one token for every row under way, and the next one for those that wait and have room.

        An error of the model ends the rows that it met; of rows that join together, those that fail alone, too. Out of
        memory, they wait, with what they have drawn, and from then on fewer run at a time.
        """
        try:
            self._leave()
            if self.rows:
                self._decode()
        except Exception as e:
            self._fail(self.rows, e)
        if not (joining := self._next_to_join()):
            return
        try:
            prefilled, deltas = _prefill(self.policy, joining)
        except Exception as e:  # too long for the memory that is left, say: those under way continue
            self._fail_those_at_fault(joining, e)
            return
        try:
            self._join(joining, prefilled, deltas)
        except Exception as e:
            self._fail([*self.rows, *joining], e)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """End rows, or let them wait for memory; of those under way nothing is left in the cache."""
        together = [row for row in {*self.rows, *rows} if row.finish_reason is None]
        if is_out_of_memory(error) and len(together) > 1:
            self.max_rows = max(1, len(together) // 2)
            self.waiting.extendleft(row for row in reversed(rows) if row.finish_reason is None)
            warnings.warn(f"out of memory with {len(together)} prompts: {self.max_rows} at a time now", stacklevel=2)
        else:
            for row in rows:
                row.end("error", error.with_traceback(None))  # whose frames hold tensors
        if any(row in rows for row in self.rows):
            self.rows, self.cache = [], None

    def _fail_those_at_fault(self, joining: Sequence[Row], error: Exception) -> None:
        """End those of several rows that fail alone too (a picture turned bad, say); the others wait for a step."""
        if len(joining) > 1 and not is_out_of_memory(error):
            for row in joining:
                try:
                    _prefill(self.policy, [row])
                except Exception as e:
                    if not is_out_of_memory(e):
                        row.end("error", e.with_traceback(None))
            if any(row.finish_reason == "error" for row in joining):
                self.waiting.extendleft(row for row in reversed(joining) if row.finish_reason is None)
                return
        self._fail(joining, error)

    def _decode(self) -> None:
        assert self.cache is not None
        self._mask_BT = pad(self._mask_BT, (0, 1), value=1)
        self._position_B1 = self._position_B1 + 1
        ids_B1 = self._mask_BT.new_tensor([[row.tokens[-1] if row.tokens else 0] for row in self.rows])
        with Rows(self._deltas):
            logits_BV = next_logits(self.policy, ids_B1, self._mask_BT, self._position_B1, self.cache)
        _draw(self.rows, logits_BV)

    def _next_to_join(self) -> list[Row]:
        """Who waits and has room, first come, first served; no more prompt tokens than one pass holds."""
        alive = [row for row in self.rows if row.finish_reason is None]
        chosen: list[Row] = []
        while self.waiting:
            row = self.waiting[0]
            if row.finish_reason is not None:  # cancelled while it waited
                self.waiting.popleft()
                continue
            together = [*alive, *chosen, row]
            tokens = sum(len(r.prompt) for r in (*chosen, row))
            full = len(together) > self.max_rows or len(together) * max(r.size for r in together) > self.max_tokens
            if len(together) > 1 and (full or (chosen and tokens > PREFILL_TOKENS)):
                break
            if alive and not can_join(self.cache):
                break
            chosen.append(self.waiting.popleft())
        return chosen

    def _join(self, rows: list[Row], new: Prefilled, deltas: dict[nn.Module, Tensor]) -> None:
        """Draw the first tokens of rows whose prompts have run, and put their caches beside the others'."""
        _draw(rows, new.logits_BV)
        self._leave(compact=True)
        if not self.rows:
            self.rows, self.cache, self._deltas = rows, new.cache, deltas
            self._mask_BT, self._position_B1 = new.mask_BP, new.position_B1
            return
        assert self.cache is not None
        width = max(self._mask_BT.shape[1], new.mask_BP.shape[1])
        for mine, theirs in zip(self.cache.layers, new.cache.layers, strict=True):
            _set_width(mine, width)
            _set_width(theirs, width)
            mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
            theirs.keys = theirs.values = None
        self._mask_BT = torch.cat([_to_width(self._mask_BT, width), _to_width(new.mask_BP, width)])
        self._position_B1 = torch.cat([self._position_B1, new.position_B1])
        self._deltas = {layer: torch.cat([delta_BR, deltas[layer]]) for layer, delta_BR in self._deltas.items()}
        self.rows = [*self.rows, *rows]

    def _leave(self, compact: bool = False) -> None:
        """Drop rows that have ended: all at once where others join, else when it is worth the copy of the cache."""
        keep = [b for b, row in enumerate(self.rows) if row.finish_reason is None]
        if not keep:
            self.rows, self.cache = [], None
        if len(keep) == len(self.rows) or (len(keep) >= COMPACT_BELOW * len(self.rows) and not compact):
            return
        assert self.cache is not None
        index = torch.tensor(keep, device=self._mask_BT.device)
        self.cache.reorder_cache(index)
        self.rows = [self.rows[b] for b in keep]
        self._position_B1, self._mask_BT = self._position_B1[index], self._mask_BT[index]
        self._deltas = {layer: delta_BR[index] for layer, delta_BR in self._deltas.items()}
        if can_join(self.cache) and (width := int(self._mask_BT.sum(-1).max())) < self._mask_BT.shape[1]:
            self._mask_BT = _to_width(self._mask_BT, width)
            for layer in self.cache.layers:
                _set_width(layer, width)


def _prefill(policy: nn.Module, rows: Sequence[Row]) -> tuple[Prefilled, dict[nn.Module, Tensor]]:
    """Run the prompts of rows, each under its own z; with the z - 1 of every layer, (B, r)."""
    device = next(policy.parameters()).device
    prompts = [torch.tensor([*row.prompt, *row.tokens], device=device) for row in rows]
    ids_BP = pad_sequence(prompts, batch_first=True, padding_side="left")
    mask_BP = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
    deltas = {layer: torch.stack([row.deltas[layer] for row in rows]) for layer in rows[0].deltas}
    with Rows(dict(deltas)) as current:

        def select(part: Tensor) -> None:
            current.deltas = {layer: delta_BR[part] for layer, delta_BR in deltas.items()}

        return prefill(policy, ids_BP, mask_BP, select), deltas


def _draw(rows: Sequence[Row], logits_BV: Tensor) -> None:
    """The next token of every row that is under way, each from its own distribution."""
    alike: dict[tuple[float, float], list[int]] = {}  # rows by how they are drawn
    finite_B = torch.isfinite(logits_BV.amax(-1)).tolist()  # entries of -inf are fine
    for b, row in enumerate(rows):
        if not finite_B[b]:
            row.end("error", UserError("the model gave non-finite logits; its expert or the base is damaged"))
        if row.finish_reason is None:
            alike.setdefault((row.sampling.temperature, row.sampling.top_p), []).append(b)
    for some in alike.values():
        sampling, logits_bV = rows[some[0]].sampling, logits_BV[some]
        uniforms = logits_bV.new_tensor([rows[b].uniforms[len(rows[b].tokens)] for b in some])
        tokens, logprobs = choose_tokens(logits_bV, uniforms, sampling)
        if sampling.temperature not in (0, 1) or sampling.top_p < 1:  # what is noted is the model's own, as with vLLM
            logprobs = logits_bV.gather(-1, tokens[:, None])[:, 0] - logits_bV.logsumexp(-1)
        for b, token, logprob in zip(some, tokens.tolist(), logprobs.tolist(), strict=True):
            row = rows[b]
            if row.top_logprobs:
                values, ids = logits_BV[b].log_softmax(-1).topk(row.top_logprobs)
                row.likeliest.append(list(zip(ids.tolist(), values.tolist(), strict=True)))
            row.take(token, logprob)


def _to_width(mask_BT: Tensor, width: int) -> Tensor:
    """Columns added or cut off on the left."""
    return pad(mask_BT, (width - mask_BT.shape[1], 0))


def _set_width(layer: Any, width: int) -> None:
    """The same for a layer's keys and values (B, heads, T, D); one with a sliding window holds no more than that."""
    kept = width
    if layer.is_sliding:
        layer.cumulative_length, kept = width, min(width, layer.sliding_window - 1)
    missing = kept - layer.keys.shape[-2]
    layer.keys, layer.values = (pad(x, (0, 0, missing, 0)) for x in (layer.keys, layer.values))
