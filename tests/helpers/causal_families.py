"""Tiny random causal language models of many families, by transformers' own names of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 64
# What families call their sizes; each takes what its config has.
_SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    n_embd=32, n_layer=2, n_head=4, n_positions=64, d_model=32, n_layers=2, n_heads=4, num_layers=2, num_heads=4,
    ffn_dim=48, word_embed_proj_dim=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
    encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48, state_size=8, time_step_rank=4, is_decoder=True,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    rotary_dim=4, max_seq_len=64, tie_word_embeddings=False, dff=48, n_ctx=64, shared_expert_intermediate_size=16,
)  # fmt: skip
_MAMBA = dict(
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_expand=2, mamba_n_groups=1, mamba_chunk_size=8
)  # fmt: skip
_LINEAR = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)  # fmt: skip

# fmt: off
# Drawn from, scored and trained as they are: what differs from the sizes above.
ACCEPTED: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in (
            "apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "ctrl", "cwm",
            "diffllama", "doge", "ernie4_5", "exaone4", "gemma", "glm", "glm4", "gpt2", "gpt_bigcode",
            "gpt_neox", "gpt_oss", "gptj", "granite", "helium", "hrm_text", "hunyuan_v1_dense", "jetmoe",
            "laguna", "lfm2", "llama", "llama4_text", "ministral", "mixtral", "mpt", "nemotron", "olmo",
            "olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2",
            "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2", "xglm",
        )
    },
    "bamba": dict(**_MAMBA, attn_layer_indices=[1]),
    "deepseek_v3": dict(
        head_dim=None, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, kv_lora_rank=16, q_lora_rank=16,
        first_k_dense_replace=1, n_group=1, topk_group=1, num_key_value_heads=4,
    ),
    "falcon": dict(head_dim=None),
    "falcon_h1": dict(**_MAMBA, mamba_d_ssm=64),
    "falcon_mamba": {},
    "gemma2": dict(sliding_window=4),
    "gemma3_text": dict(sliding_window=4),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=4),
    "granitemoehybrid": dict(**_MAMBA, layer_types=["mamba", "attention"]),
    "jamba": dict(
        num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "mamba": {},
    "mamba2": dict(num_heads=8, head_dim=8, expand=2, n_groups=1, chunk_size=8),
    "mistral": dict(sliding_window=4),
    "nemotron_h": dict(
        num_hidden_layers=None, layers_block_type=["mamba", "attention", "moe"], mamba_num_heads=8, mamba_head_dim=8,
        ssm_state_size=8, n_groups=1, chunk_size=8, moe_shared_expert_intermediate_size=16,
    ),
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    # Its transformer blocks share their weights.
    "zamba": dict(
        tie_word_embeddings=True, head_dim=None, num_hidden_layers=6,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, n_mamba_heads=2,
        mamba_dt_rank=4, attention_hidden_size=64, attention_head_dim=16,
    ),
    "zamba2": dict(
        tie_word_embeddings=True, head_dim=None, num_hidden_layers=6,
        layers_block_type=["mamba", "hybrid"] * 3, mamba_ngroups=1, n_mamba_heads=8,
        mamba_headdim=8, mamba_d_state=8, chunk_size=8, num_mem_blocks=1, attention_head_dim=16,
        attention_hidden_size=64, kv_channels=8,
    ),
}
# fmt: on
PADDING, POSITIONS, CACHE = "sees what is under the padding", "gives other logits", "DynamicCache"
# Refused by name: sizes, and why.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bart": ({}, POSITIONS),
    "bert": ({}, POSITIONS),
    "cpmant": ({}, PADDING),
    "minimax": ({}, CACHE),
    "openai-gpt": ({}, CACHE),
    "recurrent_gemma": (
        dict(lru_width=32, attention_window_size=16, block_types=["recurrent", "attention"]),
        PADDING,
    ),
    "roberta": ({}, POSITIONS),
    "rwkv": (dict(context_length=64, attention_hidden_size=32), PADDING),
    "xlstm": ({}, PADDING),
}


def build(family: str, dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    """The family's model, the same for the same name, with weights large enough for a token to matter to the next."""
    sizes = ACCEPTED[family] if family in ACCEPTED else REFUSED[family][0]
    cls = CONFIG_MAPPING[family]
    default = cls()
    config = cls(
        **{k: v for k, v in _SIZES.items() if hasattr(default, k) and k not in sizes}
        | {k: v for k, v in sizes.items() if v is not None}
    )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    if config.tie_word_embeddings:  # it ties blocks too; with this head every token would follow itself
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3 if "embed" in name or "wte" in name else 0.1)
    return model.to(dtype)


def targets(model: nn.Module) -> str:
    """All linear layers of the blocks, in the roles that the family has."""
    fused = any(p.ndim == 3 and "expert" in name for name, p in model.named_parameters())
    return r".*\.\d+\..*(?<!dt_)(proj|attn|dense|linear|query|key|value|fc\d?|out)" if fused else "all-linear"
