"""Small real models: random weights, a byte-level tokenizer, a Llama-3-shaped chat template."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; like Llama-3's it has no pad token and adds a BOS of its own when asked to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[4])
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:4]})
    fast.chat_template = TEMPLATE
    return fast


def grouped(**options: Any) -> dict[str, Any]:
    """Arguments of SVFReinforceModule, those of its groups by their own names."""
    from transformer2.module.optimizers import Warmup, WarmupCosine
    from transformer2.module.options import LossOptions, MemoryOptions, SamplingOptions

    given: dict[str, Any] = {}
    rate = {name: options.pop(name) for name in ("lr", "betas", "eps", "weight_decay") if name in options}
    if rate:
        given["optimizer"] = partial(torch.optim.AdamW, **{"lr": 1e-2, "weight_decay": 0.0, **rate})
    if "lr_schedule" in options:
        given["lr_scheduler"] = {"constant": Warmup, "cosine": WarmupCosine}[options.pop("lr_schedule")]
    groups = {"sampling": SamplingOptions, "loss": LossOptions, "memory": MemoryOptions}
    for group, kind in groups.items():
        if own := {name: options.pop(name) for name in kind.__dataclass_fields__ if name in options}:
            given[group] = own
    return {**given, **options}


def longrope(short_context: int) -> dict[str, Any]:
    """RoPE parameters of a base whose frequencies are others in a batch that holds a longer row."""
    factors = {"long_factor": [4.0] * 6, "short_factor": [1.0] * 6, "factor": 8.0}
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": short_context, **factors}


def make_llama(
    folder: Path, seed: int = 0, hidden: int = 48, layers: int = 2, context: int = 2048, init: float = 0.02, rope=None
) -> Path:
    """A folder that loads like a downloaded Llama: config, weights, tokenizer, generation config with two EOS ids."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        rope_parameters=rope,
        initializer_range=init,
        bos_token_id=0,
        eos_token_id=[1, 4],
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [1, 4]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def completion_ids(rollouts: Any) -> list[list[int]]:
    """The tokens of every completion, without padding."""
    counts = rollouts.completion_mask_BC.sum(-1).tolist()
    return [row[:n] for row, n in zip(rollouts.completion_ids_BC.tolist(), counts, strict=True)]


def ids() -> torch.Tensor:
    """Two rows of ten tokens."""
    return torch.arange(5, 25).view(2, 10)
