"""The shape of a base model and of what is tuned in it, from its config alone: nothing is downloaded, nothing loaded.

The model is built on the meta device and asked by the same code that tunes it (svf/targets.py), so what is counted is
what `fit` wraps. A Hub id works offline for the models of `KNOWN` (their published config.json) and for those that are
in the local Hub cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from transformer2.errors import ConfigError, DataError, UserError, nearest
from transformer2.plan.pictures import PictureShape, picture_shape
from transformer2.rollout.prefill import context_of
from transformer2.svf.checkpoint import LocalCheckpoint, auto_class
from transformer2.svf.config import SVFConfig
from transformer2.svf.dtype import stored_dtype
from transformer2.svf.format import peft_type
from transformer2.svf.gguf_base import names_gguf
from transformer2.svf.targets import features_of, find_targets, language_model

__all__ = ["KNOWN", "Matrix", "ModelShape", "model_shape"]


def _qwen(hidden: int, intermediate: int, layers: int, heads: int, kv: int, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
    }  # fmt: skip


_LLAMA3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA3_70B = _LLAMA3_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip
_MISTRAL_7B = _LLAMA3_8B | {"model_type": "mistral", "vocab_size": 32768, "max_position_embeddings": 32768}
_MISTRAL_7B |= {"sliding_window": None}

# A Llama with 64 more tokens, and CLIP's ViT-L/14 at 336 pixels.
_LLAVA_NEXT_8B = {
    "model_type": "llava_next", "image_token_index": 128256, "tie_word_embeddings": False,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "text_config": _LLAMA3_8B | {"vocab_size": 128320},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    },
}  # fmt: skip

# What these models' public config.json say of shapes; counted in bfloat16, as all but LLaVA-NeXT (float16) are stored.
KNOWN: dict[str, dict[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3_8B | {"max_position_embeddings": 131072},
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA3_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA3_70B | {"max_position_embeddings": 131072},
    "mistralai/Mistral-7B-Instruct-v0.3": _MISTRAL_7B,
    "llava-hf/llama3-llava-next-8b-hf": _LLAVA_NEXT_8B,
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 4864, 24, 14, 2, 151936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 8960, 28, 12, 2, 151936, True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 18944, 28, 28, 4, 152064, False),
}

# Decoder layers whose activations memory.py counts exactly: two RMS norms, rotary attention, a gated MLP.
COUNTED = ("llama", "mistral", "qwen2", "qwen2_5_vl_text")


@dataclass(frozen=True)
class Matrix:
    """One tuned matrix W (m x n)."""

    name: str  # module path
    n: int  # inputs
    m: int  # outputs

    @property
    def r(self) -> int:
        """Number of singular values."""
        return min(self.m, self.n)

    @property
    def layer(self) -> int:
        """Number of its decoder layer."""
        return next(int(part) for part in self.name.split(".") if part.isdigit())

    @property
    def leaf(self) -> str:
        """`q_proj`, `down_proj`, ..."""
        return self.name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on."""

    name: str  # the base as the config names it
    model_type: str  # transformers' word for the family
    params: int  # a tied embedding once; towers included
    linear: int  # of these, in linear layers of decoder blocks
    experts: int  # ... in experts that are one parameter, which are neither tuned nor packed
    multiplied: int  # ... of both, what one token multiplies
    packable: int  # what quantisation packs: these and the linear layers of towers, without the modules that it skips
    V: int  # vocabulary
    D: int  # hidden size
    I: int  # noqa: E741  # intermediate size of the MLP; the paper's letter, like D and V
    A: int  # heads x head_dim
    K: float  # kv_heads x head_dim; half of what a token adds to the KV cache of a layer, on average
    heads: int
    layers: int
    context: int  # longest sequence
    dtype_bytes: int  # of the dtype that the weights are stored in
    tuned: tuple[Matrix, ...]
    pictures: PictureShape | None = None  # the largest that the base takes
    tower: int = 0  # parameters outside of the language model and its head
    packed: Mapping[str, Any] | None = None  # the `quantization_config` of a checkpoint that is quantised itself
    notes: tuple[str, ...] = ()  # what is assumed

    @property
    def counted(self) -> bool:
        """Whether its activations are counted exactly (a Llama-like decoder)."""
        return self.model_type in COUNTED

    @property
    def num_z(self) -> int:
        """Singular values of all tuned matrices: trainable numbers of SVF."""
        return sum(matrix.r for matrix in self.tuned)

    @property
    def tuned_weights(self) -> int:
        """Entries of all tuned matrices."""
        return sum(matrix.m * matrix.n for matrix in self.tuned)

    @property
    def basis(self) -> int:
        """Entries of all side bases P."""
        return sum(matrix.r**2 for matrix in self.tuned)


def model_shape(
    base: str,
    adapter: Mapping[str, Any],
    dtype: str = "auto",
    model_kwargs: Mapping[str, Any] | None = None,
) -> ModelShape:
    """The shape of a base model under an adapter.

    Args:
        base: `tiny`, `smollm2`, a folder, a GGUF file, or a Hub id.
        adapter: As in a config: `peft_type` (SVF or LORA), `target_modules`, `layers_to_transform`, ...
        dtype: `auto` (as stored) or a torch dtype's name.
        model_kwargs: As the model is loaded with (`revision`, `subfolder`, `cache_dir`, `trust_remote_code`, ...).

    Raises:
        UserError: The base's config is not to be had, or the adapter matches nothing.
    """
    options, notes = model_kwargs or {}, list[str]()
    skeleton, config, checkpoint = _skeleton(base, options)
    stored: Any = getattr(torch, dtype) if dtype != "auto" else stored_dtype(config)
    if stored is None:
        stored = checkpoint.tensor_dtype if checkpoint else torch.bfloat16  # of `KNOWN`
    if stored is None:
        stored = torch.float32  # as transformers does
        notes.append("float32 is assumed: config.json names no dtype, and there are no safetensors; give --model.dtype")
    packing = options.get("quantization_config") or getattr(config, "quantization_config", None) or {}
    try:
        text = config.get_text_config()
        targets, heads = _targets(adapter, text.model_type), text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        linear = {name: features for name, module in skeleton.named_modules() if (features := features_of(module))}
        inside, head = language_model(skeleton), skeleton.get_output_embeddings()
        blocks = [name for name in linear if name.startswith(inside) and any(p.isdigit() for p in name.split("."))]
        towers = [name for name in linear if not name.startswith(inside) and skeleton.get_submodule(name) is not head]
        around = {id(p) for p in [*skeleton.get_submodule(inside.removesuffix(".")).parameters(), *head.parameters()]}
        dense = sum(prod(linear[name]) for name in blocks)
        stacked = [p for name, p in skeleton.named_parameters() if p.ndim == 3 and "expert" in name]
        chosen = getattr(text, "num_experts_per_tok", None)
        cached: float = 2 * (getattr(text, "num_key_value_heads", None) or heads) * head_dim
        if text.model_type not in COUNTED:
            if found := _cached(skeleton):
                cached = found / text.num_hidden_layers
            else:
                notes.append(f"{text.model_type}: the KV cache is estimated as that of a Llama of these sizes")
        return ModelShape(
            name=base,
            model_type=text.model_type,
            params=sum(p.numel() for p in skeleton.parameters()),
            linear=dense,
            experts=sum(p.numel() for p in stacked),
            multiplied=dense + sum(p[0].numel() * min(chosen or len(p), len(p)) for p in stacked),
            packable=sum(prod(linear[name]) for name in _converted([*blocks, *towers], packing)),
            V=text.vocab_size,
            D=text.hidden_size,
            I=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            A=heads * head_dim,
            K=cached / 2,
            heads=heads,
            layers=text.num_hidden_layers,
            context=context_of(text),
            dtype_bytes=stored.itemsize,
            tuned=tuple(Matrix(name, *linear[name]) for name in find_targets(skeleton, targets)),
            pictures=picture_shape(config, checkpoint.folder if checkpoint else None),
            tower=sum(p.numel() for p in skeleton.parameters() if id(p) not in around),
            packed=getattr(config, "quantization_config", None),
            notes=tuple(notes),
        )
    except AttributeError as e:
        raise ConfigError(f"the config of {base} does not say what is needed to plan ({e})") from e


def _skeleton(base: str, model_kwargs: Mapping[str, Any]) -> tuple[Any, Any, LocalCheckpoint | None]:
    """(model on the meta device, its config, their files)."""
    from transformers import AutoConfig

    try:
        checkpoint = LocalCheckpoint.of_base(base, {**model_kwargs, "local_files_only": True}, weights=False)
        return checkpoint.skeleton, checkpoint.config, checkpoint
    except DataError as e:
        if names_gguf(base):
            raise
        if base not in KNOWN:
            raise UserError(
                f"no config.json for base {base!r} on this machine{nearest(base, KNOWN)} Give a local folder; a "
                f"Hub id works offline for {', '.join(KNOWN)}"
            ) from e
    options = dict(KNOWN[base])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    with torch.device("meta"):
        return auto_class(config).from_config(config), config, None


def _cached(skeleton: Any) -> int:
    """Numbers that one token adds to the KV cache, as its model keeps them: what multi-query and latent attention keep
    is in no common key of configs. 0 where that cannot be found out."""
    try:
        token = torch.ones(1, 1, dtype=torch.long, device="meta")
        with torch.no_grad():
            layers = skeleton(input_ids=token, use_cache=True).past_key_values.layers
        kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(t.numel() for t in kept if t is not None)
    except Exception:  # whatever code of any model raises where tensors have no values
        return 0


def _converted(names: list[str], packing: Any) -> Iterator[str]:
    """Those of linear layers that a `quantization_config` packs."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    options = packing if isinstance(packing, Mapping) else packing.to_dict()
    skipped = options.get("llm_int8_skip_modules") or options.get("modules_to_not_convert")
    return (name for name in names if should_convert_module(name, skipped))


def _targets(adapter: Mapping[str, Any], model_type: str) -> SVFConfig:
    """A config that picks the adapter's modules: SVF's own rules cover PEFT's for lists, names and expressions."""
    kind = peft_type(adapter)
    if kind not in ("SVF", "LORA"):
        raise ConfigError(f"plan knows adapters of peft_type SVF and LORA, not {kind}")
    keys = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
    options = {key: adapter[key] for key in keys if adapter.get(key) is not None}
    if kind == "LORA" and "target_modules" not in options:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

        if model_type not in DEFAULTS:
            raise ConfigError(f"PEFT has no default LoRA targets for {model_type}; name adapter.target_modules")
        options["target_modules"] = list(DEFAULTS[model_type])
    return SVFConfig(**options)
