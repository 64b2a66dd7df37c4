"""What the prompts of a batch have in common, so that a pass over them runs it once.

Rows of one prompt (`num_completions` of them) have all of it in common, and most tasks begin every prompt alike: a
system message, instructions, a list of categories. The state of a causal model at a token depends on nothing after it,
so those tokens' keys and values serve all rows, and the gradients that reach them add up over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["Shared", "select_rows", "shareable", "shared_part"]

# Below this saving another pass through the layers costs as much as the tokens that it spares.
MOST_TOKENS = 0.8


@dataclass(frozen=True)
class Shared:
    """Left-padded prompts (B, P) as one beginning of K tokens, and U different rests of P - K columns.

    The mask of both together is `mask_UP`: what is padded stands between the two.

    Attributes:
        beginning_1K: Tokens that all prompts begin with; K may be 0.
        rest_UR: The others of each different prompt, left-padded; none is empty.
        mask_UP: 1 where a token counts, for the beginning and the rest.
        prompt_B: Which of the U prompts each row has.
    """

    beginning_1K: Tensor
    rest_UR: Tensor
    mask_UP: Tensor
    prompt_B: Tensor

    @property
    def ids_UP(self) -> Tensor:
        """The U different prompts."""
        return torch.cat([self.beginning_1K.expand(len(self.rest_UR), -1), self.rest_UR], dim=1)

    @property
    def tokens(self) -> int:
        """Columns that are run."""
        return self.beginning_1K.numel() + self.rest_UR.numel()


def shared_part(ids_BP: Tensor, mask_BP: Tensor, columns: int = 0) -> Shared | None:
    """What left-padded prompts have in common.

    Args:
        ids_BP: The prompts.
        mask_BP: 1 where a token counts.
        columns: Columns of every row that are run beside the prompts.

    Returns:
        None where too little would be saved.
    """
    lengths = mask_BP.sum(-1).tolist()
    rows = [tuple(ids[len(ids) - n :]) for ids, n in zip(ids_BP.tolist(), lengths, strict=True)]
    number = {prompt: u for u, prompt in enumerate(dict.fromkeys(rows))}
    width, begins = max(lengths), _common(list(number))
    whole = len(rows) * (width + columns)
    alone = len(number) * width + len(rows) * columns
    with_beginning = begins + len(number) * (width - begins) + len(rows) * columns
    if with_beginning > MOST_TOKENS * alone:
        begins, with_beginning = 0, alone
    if with_beginning > MOST_TOKENS * whole:
        return None
    first_U = torch.tensor([rows.index(prompt) for prompt in number], device=ids_BP.device)
    beginning_1K = ids_BP.new_tensor([rows[0][:begins]], dtype=torch.long).view(1, begins)
    # A rest keeps its right end; the columns before it are padding, whatever the tokens under it.
    rest_UR, rest_mask_UR = (x_BP[first_U, x_BP.shape[1] - width + begins :] for x_BP in (ids_BP, mask_BP))
    short_U = torch.tensor([len(prompt) - begins for prompt in number], device=ids_BP.device)
    columns_R = torch.arange(width - begins, 0, -1, device=ids_BP.device)
    rest_mask_UR = rest_mask_UR * (columns_R <= short_U[:, None])
    mask_UP = torch.cat([mask_BP.new_ones(len(number), begins), rest_mask_UR], dim=1)
    return Shared(beginning_1K, rest_UR, mask_UP, torch.tensor([number[r] for r in rows], device=ids_BP.device))


def _common(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all of several prompts begin with, fewer than the shortest has; one alone shares nothing."""
    shortest = min(map(len, prompts)) - 1
    if len(prompts) == 1 or shortest < 1:
        return 0
    low, high = min(prompts), max(prompts)  # in alphabetical order the first and the last differ most
    return next((k for k in range(shortest) if low[k] != high[k]), shortest)


def shareable(cache: DynamicCache) -> bool:
    """Whether rows can be copied and padding may stand amid them: keys and values of all tokens, no window."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def select_rows(cache: DynamicCache, rows_B: Tensor) -> None:
    """Give the cache these rows of it, some more than once; gradients flow back to the ones they were copied from."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            setattr(layer, name, getattr(layer, name)[rows_B])
