"""The models and batches that benchmarks run on: a random Llama built here, and the embedded one."""

from __future__ import annotations

import warnings

import torch
from _common import DEVICE
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from transformer2.tiny import model_path
from transformer2.types import Example, PromptBatch, Rollouts

transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")

__all__ = ["MLP", "SilentTokenizer", "embedded_model", "prompts", "random_llama", "rollouts"]

MLP = ("gate_proj", "up_proj", "down_proj")


class SilentTokenizer:
    """What a rollout engine needs of a tokenizer, without texts."""

    pad_token_id = 0

    def batch_decode(self, ids: list[list[int]], **options: bool) -> list[str]:
        """No text for every row."""
        return [""] * len(ids)


def random_llama(hidden: int = 512, layers: int = 4, vocab: int = 8192, seed: int = 0) -> PreTrainedModel:
    """A Llama with the 8B's proportions (MLP rho 0.29, k/v rho 0.25) and random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=hidden**-0.5,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(DEVICE).eval()


def embedded_model() -> PreTrainedModel | None:
    """The embedded model; None before its weights are built."""
    if not (model_path() / "model.safetensors").is_file():
        return None
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).to(DEVICE).eval()


def prompts(rows: int, tokens: int, vocab: int) -> PromptBatch:
    """Random prompts of one length."""
    ids_BP = torch.randint(4, vocab, (rows, tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    examples = tuple(Example(f"row/{i}", (), "") for i in range(rows))
    return PromptBatch(examples, ids_BP, torch.ones_like(ids_BP))


def rollouts(rows: int, prompt_tokens: int, completion_tokens: int, vocab: int) -> Rollouts:
    """A batch of random completions of one length: what a training step scores."""
    batch = prompts(rows, prompt_tokens, vocab)
    ids_BC: Tensor = torch.randint(4, vocab, (rows, completion_tokens), generator=torch.Generator().manual_seed(2))
    finished_B = torch.ones(rows, dtype=torch.bool, device=DEVICE)
    texts = tuple("" for _ in range(rows))
    ids_BC = ids_BC.to(DEVICE)
    return Rollouts(
        batch.examples, batch.input_ids_BP, batch.attention_mask_BP, ids_BC, torch.ones_like(ids_BC), texts, finished_B
    )
