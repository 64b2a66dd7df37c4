"""The forward pass over the prompts: no more of it than the first token needs.

1. A few rows at a time. What a layer holds for a moment is bounded by PREFILL_TOKENS, not by the batch, and on a
   CPU stays in cache and in memory that the allocator keeps; rows of one pass give the same numbers in several.
2. What prompts have in common once (shared.py), where the caller knows that this model lets it.
3. Of the output head only the last position. (The last layer's MLP runs over all of them, though nobody reads its
   other outputs: leaving them out saved 3 % of a pass through 30 layers, docs/adr/0014.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from transformer2.rollout.shared import Shared, select_rows, shared_part
from transformer2.svf.quantised import base_model
from transformer2.vision import positions

__all__ = ["Prefilled", "can_join", "context_of", "next_logits", "position_ids", "prefill", "rows_at_a_time"]

PREFILL_TOKENS = 2048


class Prefilled(NamedTuple):
    """Prompts that have run.

    Attributes:
        logits_BV: Of the next token, fp32.
        cache: Of the prompts.
        mask_BP: Of the cache: in one of shared tokens padding stands behind the beginning.
        position_B1: Of the last token (see `vision.positions`).
    """

    logits_BV: Tensor
    cache: DynamicCache
    mask_BP: Tensor
    position_B1: Tensor


def context_of(config: PretrainedConfig) -> int:
    """Tokens of the longest row, prompt and completion, of a model with this config; 10**9 where it names no limit."""
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if (rope := getattr(text, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        # Beyond this its frequencies are others, for all rows of a batch that holds one such row.
        context = rope.get("original_max_position_embeddings") or context
    return context or 10**9


def rows_at_a_time(width: int) -> int:
    """Rows of one forward pass over prompts of `width` tokens."""
    return max(1, PREFILL_TOKENS // width)


def prefill(
    policy: nn.Module,
    ids_BP: Tensor,
    mask_BP: Tensor,
    select: Callable[[Tensor], None],
    whole: bool = False,
    share: bool = False,
) -> Prefilled:
    """Run the prompts.

    Args:
        policy: The model.
        ids_BP: Left-padded prompts.
        mask_BP: 1 where a token counts.
        select: Called with the rows of each forward pass, and with all B rows at the end.
        whole: One forward pass in any case.
        share: Run once what rows have in common, where that is much; they must be of one z.
    """
    everyone_B = torch.arange(len(ids_BP), device=ids_BP.device)
    common = shared_part(ids_BP, mask_BP) if share and not whole else None
    part = common or Shared(ids_BP[:1, :0], ids_BP, mask_BP, everyone_B)
    begins, rows_U = part.beginning_1K.shape[1], everyone_B[: len(part.rest_UR)]
    positions_UP = positions(policy, part.ids_UP, part.mask_UP)
    beginning, pieces, logits = DynamicCache(config=policy.config), [], []
    splits = not whole and can_join(beginning)
    with _contiguous_for_head(policy):
        if begins:
            ones_1K = torch.ones_like(part.beginning_1K)
            next_logits(policy, part.beginning_1K, ones_1K, positions_UP[:1, :begins], beginning)
        for rows in rows_U.split(rows_at_a_time(part.mask_UP.shape[1]) if splits else len(rows_U)):
            select(rows)
            piece = deepcopy(beginning)
            if begins:
                select_rows(piece, torch.zeros_like(rows))
            rest = part.rest_UR[rows], part.mask_UP[rows], positions_UP[rows, begins:]
            logits.append(next_logits(policy, *rest, piece))
            pieces.append(piece)
    select(everyone_B)
    cache, logits_BV, mask_BP, position_B1 = _join(pieces), torch.cat(logits), part.mask_UP, positions_UP[:, -1:]
    if common is not None:
        select_rows(cache, part.prompt_B)
        logits_BV, mask_BP, position_B1 = (x[part.prompt_B] for x in (logits_BV, mask_BP, position_B1))
    return Prefilled(logits_BV, cache, mask_BP, position_B1)


def next_logits(policy: nn.Module, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, past: DynamicCache) -> Tensor:
    """Logits after the last of these tokens, fp32 (B, V). The tokens join the cache; the mask is of both."""
    # State-space models call their cache otherwise, and their masks are of the new tokens alone.
    is_state = "cache_params" in signature(getattr(base_model(policy), "forward", policy)).parameters
    output = policy(
        input_ids=ids_BT,
        attention_mask=mask_BT[:, -ids_BT.shape[1] :] if is_state else mask_BT,
        position_ids=position_ids(positions_BT),
        use_cache=True,
        logits_to_keep=1,
        **{"cache_params" if is_state else "past_key_values": past},
    )
    return output.logits[:, -1].float()


def position_ids(positions_BT: Tensor) -> Tensor:
    """Positions (B, T), or (B, T, 3), as transformers' models take them: (B, T), or (3, B, T)."""
    return positions_BT.movedim(-1, 0) if positions_BT.dim() == 3 else positions_BT


def can_join(cache: DynamicCache) -> bool:
    """Whether keys and values are all that a cache holds (not so with linear attention)."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _join(caches: list[DynamicCache]) -> DynamicCache:
    """One cache of all rows; the given ones are used up, layer by layer, so that memory holds one layer twice."""
    if len(caches) == 1:
        return caches[0]
    for whole, *others in zip(*(piece.layers for piece in caches), strict=True):
        for name in ("keys", "values"):
            setattr(whole, name, torch.cat([getattr(layer, name) for layer in (whole, *others)]))
            for layer in others:
                setattr(layer, name, None)
    return caches[0]


def _contiguous_for_head(policy: nn.Module) -> AbstractContextManager[Any]:
    """Inside, the output head is given contiguous rows.

    `logits_to_keep` hands it a strided slice, which torch multiplies as one matrix product per row: 13 times as slow,
    and in bf16 on the CPU with a copy of the whole head for each (0.27 GB a row for Qwen2.5-0.5B).
    """
    head = getattr(policy, "get_output_embeddings", lambda: None)()
    if head is None:
        return nullcontext()
    hook: AbstractContextManager[Any] = head.register_forward_pre_hook(
        lambda _, args: (args[0].contiguous(), *args[1:])
    )
    return hook
