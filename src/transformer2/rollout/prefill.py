"""The forward pass over the prompts: no more of it than the first token needs.

1. A few rows at a time. What a layer holds for a moment is bounded by PREFILL_TOKENS, not by the batch, and on a
   CPU stays in cache and in memory that the allocator keeps; rows of one pass give the same numbers in several.
2. Of the last layer's MLP and of the output head only the last position. Nobody reads the others: the last keys
   and values are taken before that MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from transformer2.svf.quantised import base_model

__all__ = ["next_logits", "prefill", "rows_at_a_time"]

PREFILL_TOKENS = 2048


def rows_at_a_time(width: int) -> int:
    """Rows of one forward pass over prompts of `width` tokens."""
    return max(1, PREFILL_TOKENS // width)


def prefill(
    policy: nn.Module,
    ids_BP: Tensor,
    mask_BP: Tensor,
    positions_BP: Tensor,
    select: Callable[[Tensor], None],
    whole: bool = False,
) -> tuple[Tensor, DynamicCache]:
    """Run the prompts.

    Args:
        policy: The model.
        ids_BP: Left-padded prompts.
        mask_BP: 1 where a token counts.
        positions_BP: Their positions.
        select: Told which of the B rows a forward pass holds; all of them at the end.
        whole: One forward pass in any case.

    Returns:
        Logits of the next token, fp32 (B, V), and the cache of the prompts.
    """
    rows_B = torch.arange(len(ids_BP), device=ids_BP.device)
    splits = not whole and _can_join(DynamicCache(config=policy.config))
    pieces, logits = [], []
    with _last_position_only(policy):
        for rows in rows_B.split(rows_at_a_time(ids_BP.shape[1]) if splits else len(rows_B)):
            select(rows)
            pieces.append(DynamicCache(config=policy.config))
            logits.append(next_logits(policy, ids_BP[rows], mask_BP[rows], positions_BP[rows], pieces[-1]))
    select(rows_B)
    return torch.cat(logits), _join(pieces)


def next_logits(policy: nn.Module, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, past: DynamicCache) -> Tensor:
    """Logits after the last of these tokens, fp32 (B, V). The tokens join the cache; the mask is of both."""
    # State-space models call their cache otherwise, and their masks are of the new tokens alone.
    is_state = "cache_params" in signature(getattr(base_model(policy), "forward", policy)).parameters
    output = policy(
        input_ids=ids_BT,
        attention_mask=mask_BT[:, -ids_BT.shape[1] :] if is_state else mask_BT,
        position_ids=positions_BT,
        use_cache=True,
        logits_to_keep=1,
        **{"cache_params" if is_state else "past_key_values": past},
    )
    return output.logits[:, -1].float()


def _can_join(cache: DynamicCache) -> bool:
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


@contextmanager
def _last_position_only(policy: nn.Module) -> Iterator[None]:
    """Inside, the last layer's MLP and the output head work for the last position only.

    `logits_to_keep` hands the head a strided slice, which torch multiplies as one matrix product per row: 13 times as
    slow, and in bf16 on the CPU with a copy of the whole head for each (0.27 GB a row for Qwen2.5-0.5B).
    """
    with ExitStack() as undo:
        head = getattr(policy, "get_output_embeddings", lambda: None)()
        if head is not None:
            hook = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
            undo.callback(hook.remove)
        mlp = _last_mlp(policy)
        if mlp is not None and "forward" not in vars(mlp):  # else somebody wraps it already
            mlp.forward = partial(_of_last_position, mlp.forward)
            undo.callback(delattr, mlp, "forward")
        yield


def _last_mlp(policy: nn.Module) -> Any:
    """`layers[-1].mlp` of the decoder, as most families call it; else None."""
    layers = getattr(getattr(policy, "get_decoder", lambda: None)(), "layers", None)
    return getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) else None


def _of_last_position(forward: Callable[..., Any], x_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An MLP's output (first of a tuple, where a router's scores follow) with zeros but for the last position."""
    if args or kwargs or x_BTD.ndim != 3:
        return forward(x_BTD, *args, **kwargs)
    y, *rest = y if isinstance(y := forward(x_BTD[:, -1:]), tuple) else (y,)
    whole_BTD = F.pad(y, (0, 0, x_BTD.shape[1] - 1, 0))
    return (whole_BTD, *rest) if rest else whole_BTD
