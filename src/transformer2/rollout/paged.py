"""Rollouts by transformers' continuous batching: finished rows make room for waiting ones, the cache is in pages.

Made for one GPU, where it spares the padding and the stragglers of a fixed batch; on a CPU it works, slowly. It runs
the policy's own weights, into which the active z is composed while it draws. Its random numbers are one stream for all
rows of a process: the same seed and the same batch give the same completions, another batch gives others. It knows no
stop strings: a row draws on past one, and is cut there afterwards. It holds token ids in 32 bits, too few
for those of pictures (vision/tokens.py), and fails on text of such bases: they are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from math import ceil
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedTokenizerBase

from transformer2.errors import ConfigError, UserError
from transformer2.rollout.base import RolloutEngine, Sampling, check_no_rows, prompt_ids
from transformer2.rollout.probe import check_drawn
from transformer2.svf.modes import merged_for_rollout
from transformer2.types import PromptBatch, Rollouts

PAGE, MOST_TOKENS = 256, 8192  # of a page and of a pass, the library's defaults

_tried: WeakSet[nn.Module] = WeakSet()  # models that were found to be drawn from rightly


class PagedEngine(RolloutEngine):
    """Sampling by `model.generate_batch`.

    Args:
        tokenizer: See RolloutEngine.
        eos_ids: See RolloutEngine.
        max_rows: Rows under way at a time; None leaves it to memory.
        merge: See HFEngine.
        stop: See RolloutEngine.

    Raises:
        ConfigError: The base takes pictures.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Iterable[int],
        max_rows: int | None = None,
        merge: bool = False,
        stop: Iterable[str | int] = (),
    ) -> None:
        super().__init__(tokenizer, eos_ids, stop)
        if getattr(tokenizer, "family", None) is not None:
            raise ConfigError("model.rollout: paged runs bases of text alone, and this one takes pictures; use hf")
        self.max_rows, self.merge = max_rows, merge

    @torch.inference_mode(False)  # the library's worker thread writes into tensors that are made here
    @torch.no_grad()
    def generate(self, policy: nn.Module, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """See `RolloutEngine.generate`.

        Raises:
            ConfigError: The library would draw another model's completions (see `check_drawn`).
            UserError: Rows have z of their own (`z_rows`), or a row was not finished.
        """
        check_no_rows(policy)
        if policy not in _tried:
            check_drawn(policy, prompts.input_ids_BP.device, lambda ids, greedy: self._draw(policy, ids, greedy, 0))
            _tried.add(policy)
        first = (prompts.row_ids or (0,))[0]  # every rank begins with another row
        return self.packed(prompts, *self._draw(policy, prompt_ids(prompts), sampling, seed + first))

    def _draw(
        self, policy: nn.Module, ids: Sequence[list[int]], sampling: Sampling, seed: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """A completion of each prompt, and the log-probabilities of its tokens."""
        model: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        greedy, on_gpu = sampling.temperature == 0, model.device.type == "cuda"
        how = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}
        generation = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not greedy,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
            **how,
        )
        batching = ContinuousBatchingConfig(
            return_logprobs=True,
            seed=seed % 2**32,
            max_requests_per_batch=self.max_rows,
            # On a GPU the library sizes the cache by free memory; elsewhere it would take most of the machine's. Its
            # mask of a pass has the square of `max_batch_tokens`, and no pass has more tokens than all prompts.
            num_blocks=None if on_gpu else 1 + sum(ceil((len(i) + sampling.max_new_tokens) / PAGE) for i in ids),
            max_batch_tokens=None if on_gpu else min(MOST_TOKENS, sum(map(len, ids))),
        )
        # It seeds torch's global generator.
        with merged_for_rollout(policy) if self.merge else nullcontext(), torch.random.fork_rng():
            drawn = model.generate_batch(ids, generation, batching)
        rows = list(drawn.values())
        if len(rows) < len(ids) or any(row.error for row in rows):
            reason = next((row.error for row in rows if row.error), "its worker ended")
            raise UserError(
                f"continuous batching failed ({reason}); lower model.memory.max_rollout_rows, or use rollout: hf"
            )
        return [row.generated_tokens for row in rows], [row.logprobs for row in rows]
