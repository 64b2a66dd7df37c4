"""Tiny random decoders, one per family, and the fp64 oracle that every form is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2.svf.layer import svf_layers

VOCAB = 64
_COMMON = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
_TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_LLAMA = _COMMON | _TOKENS | dict(intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64)


@dataclass(frozen=True)
class Family:
    """A family and the leaf names that its roles stand for."""

    config: Callable[[], tf.PretrainedConfig]
    mlp: frozenset[str]
    attention: frozenset[str]


_GATED = frozenset({"gate_proj", "up_proj", "down_proj"})
_QKVO = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})

FAMILIES = {
    "llama": Family(lambda: tf.LlamaConfig(**_LLAMA), _GATED, _QKVO),
    "mistral": Family(lambda: tf.MistralConfig(**_LLAMA), _GATED, _QKVO),
    "qwen2": Family(lambda: tf.Qwen2Config(**_LLAMA), _GATED, _QKVO),
    "qwen3": Family(lambda: tf.Qwen3Config(**_LLAMA, head_dim=8), _GATED, _QKVO),
    "gemma2": Family(lambda: tf.Gemma2Config(**_LLAMA, head_dim=8), _GATED, _QKVO),
    "gemma3": Family(lambda: tf.Gemma3TextConfig(**_LLAMA, head_dim=8), _GATED, _QKVO),
    "phi3": Family(
        lambda: tf.Phi3Config(**_LLAMA), frozenset({"gate_up_proj", "down_proj"}), frozenset({"qkv_proj", "o_proj"})
    ),
    "gpt2": Family(
        lambda: tf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, **_TOKENS),
        frozenset({"c_fc", "c_proj"}),
        frozenset({"c_attn", "c_proj"}),
    ),
    "gpt_neox": Family(
        lambda: tf.GPTNeoXConfig(**_COMMON, **_TOKENS, intermediate_size=48, max_position_embeddings=64),
        frozenset({"dense_h_to_4h", "dense_4h_to_h"}),
        frozenset({"query_key_value", "dense"}),
    ),
}


def build(family: str, seed: int = 0) -> tf.PreTrainedModel:
    """The family's tiny model, the same one for the same seed, with biases and weights large enough to matter."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[family].config(), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (parameter.ndim == 2 and "embed" not in name and "wte" not in name) or name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


def prompt(rows: int = 3, length: int = 7) -> Tensor:
    """Token ids without specials, (rows, length)."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def randomize(model: nn.Module, adapter: str = "default", std: float = 0.3, seed: int = 2) -> None:
    """Fill z - 1 of an adapter with noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in svf_layers(model):
            if adapter in layer.svf_z:
                parameter = next(layer.svf_z[adapter].parameters())
                parameter.add_((torch.randn(parameter.shape, generator=generator) * std).to(parameter.device))


def svd_weight(weight: Tensor, delta_R: Tensor, transposed: bool) -> Tensor:
    """U diag(sigma z) V^T in fp64 through torch.linalg.svd, in the layout of `weight`."""
    weight_mn = weight.detach().double()
    weight_mn = weight_mn.T if transposed else weight_mn
    u, sigma, vh = torch.linalg.svd(weight_mn, full_matrices=False)
    composed = (u * (sigma * (1 + delta_R.detach().double()))) @ vh
    return composed.T if transposed else composed


def oracle(family: str, tuned: nn.Module, adapter: str = "default") -> tf.PreTrainedModel:
    """A second base model whose weights are U diag(sigma z) V^T with the z of `tuned`."""
    base = build(family)
    with torch.no_grad():
        for name, layer in svf_layers(tuned):
            module = base.get_submodule(name.removeprefix("base_model.model."))
            if adapter in layer.svf_z:
                delta_R = layer.delta([adapter])
                module.weight.copy_(svd_weight(module.weight, delta_R, isinstance(module, Conv1D)))
    return base


class Int8Linear(nn.Module):
    """Weight-only int8 with a scale per row: the shape of most quantised bases, with gradients to its input."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def build_int8(family: str) -> tf.PreTrainedModel:
    """The family's tiny model with every linear layer of its blocks in int8."""
    model = build(family)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Int8Linear(module))
    return model
