"""GGUF files as llama.cpp's converter writes them, from a Llama of `fakes.make_llama`: its own names and order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(folder: Path, file: Path, kind: str = "F32", arch: str = "llama", rope_freqs: bool = False) -> Path:
    """The model of a folder as one GGUF file.

    Args:
        folder: A transformers Llama.
        file: The new file.
        kind: `F32`, `F16` or `Q8_0`: of the matrices; norms are F32.
        arch: What it says it is.
        rope_freqs: With scaled rotary frequencies, as Llama 3.1's.
    """
    import gguf

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(str(file), arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    ids = range(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(ids)))
    writer.add_token_types([3 if i in tokenizer.all_special_ids else 1 for i in ids])
    writer.add_token_scores([0.0] * len(ids))  # its merges are none, which an array cannot say
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        _add(writer, gguf, _name(name), _rows_in_pairs(name, tensor, config).float().numpy(), kind)
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.ones(config.head_dim // 2, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _name(name: str) -> str:
    *path, leaf = name.split(".")
    if path[:2] == ["model", "layers"]:
        return f"blk.{path[2]}.{NAMES['.'.join(path[3:])]}.{leaf}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
        ".".join(path)
    ] + ".weight"


def _rows_in_pairs(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """llama.cpp turns neighbouring entries, transformers the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.view(heads, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)


def _add(writer: Any, gguf: Any, name: str, values: np.ndarray, kind: str) -> None:
    if kind == "F32" or values.ndim == 1:
        writer.add_tensor(name, np.ascontiguousarray(values))
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
