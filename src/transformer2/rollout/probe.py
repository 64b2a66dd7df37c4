"""What decoding and training ask of a model, tried on a few random tokens before it is trusted with a run.

Rows of unequal length stand left-padded in one batch, a cache carries them on, and rows that are done leave it. A model
can get any of that wrong without an error: it ignores the mask, or a cache by that name. So every result is held
against the whole pass over the same tokens, unpadded and without a cache, which a causal model must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from transformer2.errors import ConfigError, UserError, one_line
from transformer2.halving import is_out_of_memory
from transformer2.rollout.base import Sampling
from transformer2.rollout.prefill import next_logits, prefill
from transformer2.rollout.shared import shareable
from transformer2.svf.quantised import base_model, quantisation_name
from transformer2.vision import BANNED, pictures_of

__all__ = ["Probe", "can_share", "check_decoding", "check_drawn", "probe"]

LENGTHS, STEPS = (4, 9, 6), 2  # of the prompts; tokens that follow each
# How far logits may be off, as a share of their spread over the vocabulary. Rounding gives 1e-6 in fp32 and 1e-2 in
# bf16; a wrong cache or mask 0.2 and more.
EXACT, ROUNDED = 1e-3, 0.15
# What is under the padding moves no bit, but for batches of experts and for int8 activations.
LOOSE = 0.03


@dataclass(frozen=True)
class Probe:
    """Random rows, and their logits in one whole pass.

    Attributes:
        ids_BP: Left-padded prompts, with other random ids under the padding: nothing may depend on those.
        mask_BP: 1 where a token counts.
        next_BS: The tokens that follow.
        logits_BPV: The whole pass, fp32, at each of `ids_BP`; anything under the padding.
        next_logits_BSV: The same at each of `next_BS`.
        tolerance: For numbers that are rounded otherwise.
        leak_tolerance: For numbers of batches that differ in their padding alone.
        name: The model's class.
    """

    ids_BP: Tensor
    mask_BP: Tensor
    next_BS: Tensor
    logits_BPV: Tensor
    next_logits_BSV: Tensor
    tolerance: float
    leak_tolerance: float
    name: str

    def differs(self, logits_BTV: Tensor, expected_BTV: Tensor, tolerance: float) -> bool:
        """Whether most rows are off, at any of their last T tokens.

        One row alone may be: a router of experts that hardly prefers one to another.
        """
        expected_BTV = expected_BTV.float()
        out_of_reach = expected_BTV[0, 0] == BANNED
        expected_BTV, logits_BTV = expected_BTV[..., ~out_of_reach], logits_BTV[..., ~out_of_reach]
        spread_BT = (expected_BTV - expected_BTV.mean(-1, keepdim=True)).norm(dim=-1)
        off_BT = (logits_BTV.float() - expected_BTV).norm(dim=-1) / spread_BT.clamp(min=1e-9)
        if off_BT.shape == self.mask_BP.shape:
            off_BT = off_BT * self.mask_BP
        # False where the model is not finite: that is said elsewhere, with the prompt's name.
        return bool(off_BT.amax(-1).median() > tolerance)


@torch.no_grad()
def probe(policy: nn.Module, device: torch.device | str) -> Probe:
    """Draw the rows and run the whole pass over them.

    Raises:
        ConfigError: The model fails on it.
    """
    config: Any = policy.config
    vocabulary = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    width = max(LENGTHS)
    # Ids beyond are placeholders of images in some models.
    ids_BT = torch.randint(
        min(3, vocabulary - 1), min(vocabulary, 1000), (len(LENGTHS), width + STEPS), generator=generator
    )
    if (inputs := pictures_of(policy)) is not None:
        inputs.check()
        ids_BT[torch.isin(ids_BT, torch.tensor(inputs.banned))] = 3
    ids_BT = ids_BT.to(device)
    name = type(base_model(policy)).__name__
    try:
        output = policy(input_ids=ids_BT, use_cache=False)
    except Exception as e:  # whatever its kernels raise for this dtype, device or quantisation
        if isinstance(e, UserError) or is_out_of_memory(e):
            raise
        raise ConfigError(
            f"{name} does not run on this machine as it was loaded ({type(e).__name__}: {one_line(e)}); set another "
            "model.dtype, or leave out or change quantization_config"
        ) from e
    packed = quantisation_name(policy) is not None
    exact = torch.get_float32_matmul_precision() == "highest"  # else GPUs multiply in TF32
    exact &= not packed and all(p.element_size() >= 4 for p in policy.parameters())
    # Rolled to the right, row b ends with its prompt, and begins with tokens that follow it: the padding.
    shift_B = [width - n for n in LENGTHS]
    rolled_BP = torch.stack([row[:width].roll(s) for row, s in zip(ids_BT, shift_B, strict=True)])
    logits_BPV = torch.stack([row[:width].roll(s, 0) for row, s in zip(output.logits.float(), shift_B, strict=True)])
    after = [range(n, n + STEPS) for n in LENGTHS]
    return Probe(
        rolled_BP,
        torch.stack([torch.arange(width) >= s for s in shift_B]).long().to(device),
        torch.stack([row[list(t)] for row, t in zip(ids_BT, after, strict=True)]),
        logits_BPV,
        torch.stack([row[list(t)] for row, t in zip(output.logits.float(), after, strict=True)]),
        EXACT if exact else ROUNDED,
        LOOSE if packed or any("expert" in name for name, _ in policy.named_modules()) else EXACT,
        name,
    )


@torch.no_grad()
def check_decoding(policy: nn.Module, device: torch.device | str, whole: bool = False) -> None:
    """Decode as HFEngine does: prompts, a step, a step without the row that is done.

    Args:
        policy: The model.
        device: Where it takes its ids.
        whole: See `prefill`.

    Raises:
        ConfigError: What comes out is not what the whole pass says; the message names the model.
    """
    p = probe(policy, device)
    try:
        logits, cache, mask, position = prefill(policy, p.ids_BP, p.mask_BP, lambda rows: None, whole)
        wrong = p.differs(logits[:, None], p.logits_BPV[:, -1:], p.tolerance)
        keep = torch.arange(len(mask), device=mask.device)
        for step in range(STEPS):
            if step:
                keep = keep[[2, 0]]  # those with padding
                cache.reorder_cache(keep)
                mask, position = mask[keep], position[keep]
            mask, position = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1), position + 1
            logits = next_logits(policy, p.next_BS[keep, step, None], mask, position, cache)
            wrong |= p.differs(logits[:, None], p.next_logits_BSV[keep, step, None], p.tolerance)
    except Exception as e:  # whatever a model raises that does not know our cache or our arguments
        if isinstance(e, UserError) or is_out_of_memory(e):
            raise
        raise ConfigError(
            f"{p.name} cannot be decoded with transformers' DynamicCache ({type(e).__name__}: {one_line(e)}); use "
            "another base, or model.rollout: vllm"
        ) from e
    if wrong:
        raise ConfigError(
            f"{p.name} does not continue left-padded prompts from its cache as it does in one pass, so completions "
            "would be another model's; use another base, or model.rollout: vllm"
        )


@torch.no_grad()
def check_drawn(
    policy: nn.Module,
    device: torch.device | str,
    draw: Callable[[Sequence[list[int]], Sampling], tuple[list[list[int]], list[list[float]]]],
) -> None:
    """Hold what a library's decoding says of its own greedy tokens against the whole pass over them.

    Args:
        policy: The model.
        device: Where it takes its ids.
        draw: Prompts -> completions, and the log-probabilities of their tokens.

    Raises:
        ConfigError: They differ (by positions or masks that the library does not know), or the library fails.
    """
    p = probe(policy, device)
    prompts = [ids[mask == 1].tolist() for ids, mask in zip(p.ids_BP, p.mask_BP, strict=True)]
    instead = "use model.rollout: hf"
    try:
        drawn = draw(prompts, Sampling(0.0, max_new_tokens=2 * STEPS))
    except Exception as e:  # whatever the library raises on a model that it does not know
        if is_out_of_memory(e):
            raise
        raise ConfigError(f"continuous batching does not run {p.name} ({one_line(e)}); {instead}") from e
    off_B = []
    for prompt, ids, logprobs in zip(prompts, *drawn, strict=True):
        whole_1T = torch.tensor([prompt + ids], device=device)
        logits_CV = policy(input_ids=whole_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        says_C = logits_CV.log_softmax(-1).gather(-1, whole_1T[0, len(prompt) :, None])[:, 0]
        off_B.append(((says_C - says_C.new_tensor(logprobs)).abs() / logits_CV.std(-1).clamp(min=1e-9)).max())
    if torch.stack(off_B).median() > p.tolerance:
        raise ConfigError(
            f"continuous batching draws from {p.name} as from another model (positions or a mask of its own); {instead}"
        )


@torch.no_grad()
def can_share(policy: nn.Module, device: torch.device) -> bool:
    """Whether tokens that prompts have in common may be run once (shared.py), tried like `check_decoding`.

    False where a cache holds more than the keys and values of all tokens (windows, recurrent states), or where what
    comes out is not what one pass over each row says.
    """
    if not shareable(DynamicCache(config=policy.config)):
        return False
    p = probe(policy, device)
    row = int(p.mask_BP.sum(-1).argmax())
    whole_P, half = p.ids_BP[row], p.ids_BP.shape[1] // 2
    other_P = torch.cat([whole_P[:half], whole_P[half:].flip(0)])
    ids_BP = torch.stack([whole_P, other_P, whole_P.roll(half - 1), whole_P])  # all begin alike, one behind padding
    mask_BP = torch.ones_like(ids_BP)
    mask_BP[2, : half - 1] = 0
    after_B1 = p.next_BS[[row] * len(ids_BP), :1]

    def logits_B2V(share: bool) -> Tensor:
        first_BV, cache, mask, position_B1 = prefill(policy, ids_BP, mask_BP, lambda rows: None, share=share)
        mask = torch.cat([mask, torch.ones_like(after_B1)], dim=1)
        return torch.stack([first_BV, next_logits(policy, after_B1, mask, position_B1 + 1, cache)], dim=1)

    return not p.differs(logits_B2V(True), logits_B2V(False), p.tolerance)
