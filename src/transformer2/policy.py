"""The policy: a transformers causal LM with PEFT adapters, its tokenizer, and the three ways the trainer reads it.

load_config, load_tokenizer, load_base      from a config's `base` and `model_kwargs`, all from one folder
build_policy                                the base with an adapter (adapters.py), checked
hidden_states, lm_head                      the model in two halves, so that logits never exist whole (rl/logprobs.py)
reference                                   the base model: the same weights with the adapters off, never a copy
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from transformer2.adapters import adapter_config, check_towers_frozen, expert_adapter, load_expert
from transformer2.errors import ConfigError, DataError, UserError, one_line
from transformer2.halving import is_out_of_memory
from transformer2.quantisation import quantization_config
from transformer2.rollout.prefill import position_ids
from transformer2.rollout.probe import probe
from transformer2.svf.base_folder import base_folder, check_options, for_readers, for_weights
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.config import SVFConfig
from transformer2.svf.dtype import auto_dtype, cpu_dtype, why
from transformer2.svf.quantised import keep_differentiable
from transformer2.vision import attach_pictures, family_class, load_family, positions

__all__ = [
    "adapter_config", "base_dtype", "build_policy", "check_halves", "checkpointed", "completion_states",
    "eos_token_ids", "expert_adapter", "hidden_states", "lm_head", "load_base", "load_config", "load_expert",
    "load_tokenizer", "reference",
]  # fmt: skip

_log = logging.getLogger(__name__)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def load_config(base: str, model_kwargs: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The base model's config; arguments and errors as of `load_base`."""
    with _readable(base):
        folder = base_folder(base, model_kwargs, weights=False)
        return AutoConfig.from_pretrained(str(folder), **for_readers(model_kwargs))


def load_tokenizer(base: str, model_kwargs: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, padding on the left.

    Its attribute `family` is how the base takes pictures, None where it takes none; ids from `embedded` on are not the
    model's. A tokenizer without a pad token that the model has pads with its EOS token; masks, made from lengths, tell
    the two apart. Arguments and errors as of `load_base`; a base without a tokenizer is a DataError, too.
    """
    with _readable(base):
        folder = base_folder(base, model_kwargs, weights=False)
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            raise DataError(
                f"base {base!r} has no tokenizer ({', '.join(_TOKENIZER_FILES[:2])}, ...); save the model's own there: "
                f"AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained({str(folder)!r})"
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **for_readers(model_kwargs))
    config = load_config(base, model_kwargs)
    tokenizer.family = load_family(folder, config, tokenizer, for_readers(model_kwargs))
    tokenizer.padding_side, tokenizer.embedded = "left", config.get_text_config().vocab_size
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= tokenizer.embedded:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(base: str, dtype: str = "auto", **kwargs: Any) -> PreTrainedModel:
    """The base model in evaluation mode (no dropout: the policy that is scored is the one that sampled).

    Args:
        base: `tiny`, `smollm2`, a folder, a GGUF file, or a Hub id.
        dtype: `auto` (as stored, but on a CPU 16-bit weights in what it runs fast), or a torch dtype's name.
        kwargs: `model_kwargs`: which files (`revision`, `subfolder`, `cache_dir`, `token`, `trust_remote_code`), and
            what `from_pretrained` makes of them (`attn_implementation`, `device_map`, `quantization_config`, ...).

    Raises:
        DataError: The base cannot be found or read; the message says what to give instead.
        ConfigError: It cannot be loaded so; the message names the key.
    """
    options = for_weights(kwargs) | {"output_loading_info": True}
    if dtype not in get_args(DType):
        raise ConfigError(f"unknown dtype {dtype!r}; use one of {', '.join(get_args(DType))}")
    if (packing := kwargs.get("quantization_config")) is not None:
        options["quantization_config"] = quantization_config(packing, base_dtype(base, dtype, kwargs))
    config = load_config(base, kwargs)
    check_options(config, kwargs)
    loaded_in: Any = dtype
    if dtype == "auto" and (chosen := cpu_dtype(config)) is not None:
        loaded_in = chosen
        _log.info("base %s runs in %s, %s (model.dtype: auto)", base, str(chosen).removeprefix("torch."), why(chosen))
    takes_pictures = family_class(config) is not None
    auto = AutoModelForImageTextToText if takes_pictures else AutoModelForCausalLM
    with _readable(base):
        try:
            model, info = auto.from_pretrained(str(base_folder(base, kwargs)), dtype=loaded_in, **options)
        except TypeError as e:
            given = ", ".join(kwargs) or "none"  # their names: a token is nobody else's business
            raise ConfigError(
                f"base {base!r} cannot be loaded with these model.model_kwargs ({given}): {one_line(e)}"
            ) from e
        except (RuntimeError, SafetensorError) as e:
            if is_out_of_memory(e):
                raise
            if packing is not None and isinstance(e, RuntimeError):
                raise ConfigError(f"base {base!r} cannot be quantised so: the report above says why") from e
            what = f"base {base!r} cannot be loaded ({one_line(e)})"
            raise DataError(f"{what}; if files are damaged, or not of its config.json, copy them again") from e
    if absent := sorted(dict(model.named_parameters()).keys() & info["missing_keys"]):  # they were drawn at random
        raise DataError(f"base {base!r} is not whole: {absent[0]} is not in its files; copy the folder again")
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if not places and kwargs.get("device_map") and any(p.is_meta for p in model.parameters()):
        places = ["disk"]  # earlier transformers say nothing of a model that is all off-loaded
    if len(places) > 1 or "disk" in places:
        raise ConfigError(
            f"device_map puts base {base!r} in several places ({', '.join(places)}), and it is trained as a whole; "
            "leave device_map out, and where it does not fit use conf/quantisation/ or conf/strategy/zero3_offload.yaml"
        )
    keep_differentiable(model)
    if takes_pictures:
        attach_pictures(model, load_tokenizer(base, kwargs).family)
    return model.eval()


def base_dtype(base: str, dtype: str = "auto", model_kwargs: Mapping[str, Any] | None = None) -> torch.dtype:
    """The dtype `load_base` gives the weights, without loading them."""
    if dtype != "auto":
        return getattr(torch, dtype)
    found = auto_dtype(load_config(base, model_kwargs))
    return found or LocalCheckpoint.of_base(base, model_kwargs, weights=False).tensor_dtype or torch.float32


@contextmanager
def _readable(base: str) -> Iterator[None]:
    """Turn "cannot reach the Hub" and "no such folder" into one line with the remedy."""
    try:
        yield
    except ImportError as e:  # a checkpoint that is quantised itself names the package it needs
        raise ConfigError(f"base {base!r} needs a package that is not here: {one_line(e)}") from e
    except (OSError, ValueError, TypeError, StrictDataclassError) as e:
        if isinstance(e, UserError):
            raise
        said = one_line(e, 200)
        raise DataError(f"base {base!r} cannot be loaded ({said}); give model.base a local folder, or `tiny`") from e


def build_policy(base: PreTrainedModel, adapter: Mapping[str, Any] | PeftConfig) -> PeftModel:
    """The base with a fresh adapter named `default`; at z = 1 an SVF policy equals the base bit for bit.

    Raises:
        ConfigError: The adapter cannot be built on this base, is none that training reaches, or is not the base while
            it is switched off: KL and "base" would be another model's.
    """
    config = adapter_config(adapter)
    kind = config.peft_type.value
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ConfigError(
            f"adapter.peft_type {kind} adds tokens, which this trainer does not score; use SVF, LORA, ..."
        )
    svf = isinstance(config, SVFConfig)
    runs = not svf and not any(p.is_meta or hasattr(p, "ds_id") for p in base.parameters())
    before_V = _one_token(base) if runs else None
    owned = {id(p) for p in base.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Already found a `peft_config` attribute.*")
        try:
            policy = get_peft_model(base, config)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError) as e:
            if svf or isinstance(e, UserError):
                raise
            raise ConfigError(f"a {kind} adapter cannot be built so: {one_line(e)}") from e
    policy.eval()
    check_towers_frozen(policy)
    # A bias of the base's own, trained with `bias: all`, stays as it was for `reference`.
    policy.trained_base = [(p, p.detach().clone()) for p in policy.parameters() if p.requires_grad and id(p) in owned]
    if before_V is not None:
        _check_adapter(policy, before_V, kind)
    return policy


def _one_token(model: Any) -> Tensor:
    """Logits (V,) of one token."""
    with torch.no_grad():
        ids_BT = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        return model(input_ids=ids_BT, use_cache=False).logits[0, -1]


def _check_adapter(policy: PeftModel, before_V: Tensor, kind: str) -> None:
    """Refuse an adapter that changes the base itself, or that training would not reach."""
    try:
        with reference(policy):
            same = torch.equal(_one_token(policy.get_base_model()), before_V)
        ids_BT = torch.zeros((1, 1), dtype=torch.long, device=policy.device)
        reached = lm_head(policy)(hidden_states(policy, ids_BT, torch.ones_like(ids_BT))).requires_grad
    except (ValueError, TypeError) as e:
        raise ConfigError(f"a {kind} adapter does not run in this trainer: {one_line(e)}") from e
    if not same:
        raise ConfigError(
            f"this {kind} adapter changes the base's own weights, so no base is left to compare with; use another "
            "initialisation (PiSSA, OLoRA, CorDA and LoftQ do so)"
        )
    if not reached:
        raise ConfigError(
            f"this {kind} adapter trains nothing that the base model's answers depend on; use another one"
        )


@contextmanager
def reference(policy: PeftModel) -> Iterator[None]:
    """Inside, `policy` is the base model."""
    of_base = getattr(policy, "trained_base", ())
    trained = [p.data for p, _ in of_base]
    with policy.disable_adapter():
        try:
            for p, value in of_base:
                p.data = value.to(p.device)
            yield
        finally:
            for (p, _), value in zip(of_base, trained, strict=True):
                p.data = value


def hidden_states(
    policy: PeftModel,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    past: DynamicCache | None = None,
    positions_BT: Tensor | None = None,
) -> Tensor:
    """Last hidden states (B, T, D), after the final norm: what lm_head reads.

    Args:
        policy: The model.
        input_ids_BT: int64, left-padded prompts followed by right-padded completions.
        attention_mask_BT: int64, 1 on real tokens, those of `past` included.
        past: Keys and values of the tokens before, with their graph; those of these tokens join them.
        positions_BT: See `vision.positions`; needed with `past`.
    """
    model = policy.get_base_model()
    backbone = model.base_model if model.base_model is not model else model.model  # Llama 4's prefix names nothing
    if positions_BT is None:
        positions_BT = positions(policy, input_ids_BT, attention_mask_BT)
    cached = {"use_cache": False} if past is None else {"use_cache": True, "past_key_values": past}
    where = {"attention_mask": attention_mask_BT, "position_ids": position_ids(positions_BT)}
    output = backbone(input_ids=input_ids_BT, **where, **cached)
    return output.last_hidden_state


def completion_states(
    policy: PeftModel, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, ids_BC: Tensor, mask_BC: Tensor
) -> Tensor:
    """Hidden states that predict the tokens of completions, packed: (N, D), row-major over `mask_BC`."""
    whole_BT, mask_BT = torch.cat([prompt_ids_BP, ids_BC], dim=1), torch.cat([prompt_mask_BP, mask_BC], dim=1)
    first = prompt_ids_BP.shape[1] - 1  # the state at position t - 1 predicts token t
    return hidden_states(policy, whole_BT, mask_BT)[:, first:-1][mask_BC.bool()]


@contextmanager
def checkpointed(policy: PeftModel) -> Iterator[None]:
    """Inside, a forward pass keeps each decoder layer's input only; the rest is computed again in the backward pass.

    transformers does so in training mode, and the policy is never in it (dropout). So the decoder layers alone say that
    they train; what lies within them, dropout included, does not.
    """
    policy.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def lm_head(policy: PeftModel) -> Callable[[Tensor], Tensor]:
    """The other half of the model: hidden states (..., D) -> logits (..., V), with the model's own scaling or soft cap.

    Calls of it run no hooks: under ZeRO-3 the head stays whole, and ranks call it different numbers of times.
    """
    model = policy.get_base_model()
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0

    def logits(hidden_ND: Tensor) -> Tensor:
        logits_NV = head.forward(hidden_ND.to(head.weight.dtype) if head.weight.is_floating_point() else hidden_ND)
        if scale != 1.0 or divisor != 1.0:
            logits_NV = logits_NV * (scale / divisor)
        return logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)

    return logits


def check_halves(policy: PeftModel, head: Callable[[Tensor], Tensor]) -> None:
    """Compare the two halves, on left-padded rows, with the whole model on the same rows without padding.

    A model that changes its logits in a way not known here, or that sees what is under the padding, is refused instead
    of trained on wrong log-probabilities.

    Raises:
        ConfigError: The halves do not give the model's logits.
    """
    with torch.no_grad():
        p = probe(policy, policy.device)
        halves_BPV = head(hidden_states(policy, p.ids_BP, p.mask_BP))
        other_BPV = head(hidden_states(policy, torch.where(p.mask_BP == 1, p.ids_BP, p.ids_BP.flip(-1)), p.mask_BP))
    if p.differs(halves_BPV, other_BPV, p.leak_tolerance):
        raise ConfigError(
            f"{p.name} sees what is under the padding of a batch, so its log-probabilities depend on which rows share "
            "one; use another base"
        )
    if p.differs(halves_BPV, p.logits_BPV, p.tolerance):
        raise ConfigError(
            f"{p.name} gives other logits by halves on left-padded rows than as a whole on each row (positions of its "
            "own, or a change of logits after lm_head that this trainer does not know); use another base, or teach "
            "transformer2.policy about it"
        )


def eos_token_ids(policy: PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a completion: the tokenizer's EOS and those of the generation config."""
    ids = policy.get_base_model().generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return sorted({*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
