"""The policy: a transformers causal LM with PEFT adapters, its tokenizer, and the three ways the trainer reads it.

load_tokenizer, load_base, build_policy     from a config's `base` and `adapter`
hidden_states, lm_head                      the model in two halves, so that logits never exist whole (rl/logprobs.py)
reference                                   the base model: the same weights with the adapters off, never a copy
export_merged                               the policy as a plain model folder, for tools that know no adapters
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from transformer2 import tiny
from transformer2.errors import ConfigError, DataError, ExpertError, UserError, nearest
from transformer2.experts import read_expert
from transformer2.quantisation import quantization_config
from transformer2.rollout.probe import probe
from transformer2.svf.config import SVFConfig
from transformer2.svf.quantised import keep_differentiable, warn_of_another_precision


def locate_base(base: str) -> str:
    """The folder of the embedded model for `tiny`; any other folder or Hub id as it is."""
    return str(tiny.model_path()) if base == "tiny" else base


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, padding on the left.

    A tokenizer without a pad token pads with its EOS token; masks, made from lengths, tell the two apart.

    Raises:
        DataError: The base cannot be found; the message says what to give instead.
    """
    with _readable(base):
        tokenizer = AutoTokenizer.from_pretrained(locate_base(base))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(base: str, dtype: str = "auto", **kwargs: Any) -> PreTrainedModel:
    """The base model in evaluation mode (no dropout: the policy that is scored is the one that sampled).

    Args:
        base: `tiny`, a folder, or a Hub id.
        dtype: `auto` (as stored), or a torch dtype's name.
        kwargs: Passed to `from_pretrained` (`attn_implementation`, `device_map`, `quantization_config`, ...).
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    if quantised := kwargs.get("quantization_config") is not None:
        kwargs["quantization_config"] = quantization_config(kwargs["quantization_config"], base_dtype(base, dtype))
    with _readable(base):
        try:
            model = AutoModelForCausalLM.from_pretrained(locate_base(base), dtype=dtype, **kwargs)
        except RuntimeError as e:
            if not quantised or isinstance(e, torch.OutOfMemoryError):
                raise
            raise ConfigError(f"base {base!r} cannot be quantised so: the report above says why") from e
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1 or "disk" in places:
        raise ConfigError(
            f"device_map puts base {base!r} in several places ({', '.join(places)}), and it is trained as a whole; "
            "leave device_map out, and where it does not fit use conf/quantisation/ or conf/strategy/zero3_offload.yaml"
        )
    keep_differentiable(model)
    return model.eval()


def base_dtype(base: str, dtype: str = "auto") -> torch.dtype:
    """The dtype `load_base` gives the weights, without loading them."""
    if dtype != "auto":
        return getattr(torch, dtype)
    with _readable(base):
        return AutoConfig.from_pretrained(locate_base(base)).get_text_config().dtype or torch.float32


@contextmanager
def _readable(base: str) -> Iterator[None]:
    """Turn "cannot reach the Hub" and "no such folder" into one line with the remedy."""
    try:
        yield
    except ImportError as e:  # a checkpoint that is quantised itself names the package it needs
        raise ConfigError(f"base {base!r} needs a package that is not here: {' '.join(str(e).split())}") from e
    except (OSError, ValueError) as e:
        if isinstance(e, ConfigError):
            raise
        if os.sep in base and not Path(base).exists() and base.count("/") != 1:
            raise DataError(f"base {base!r} is no folder on this machine; give `tiny`, a folder, or a Hub id") from e
        first = str(e).strip().splitlines()[0]
        raise DataError(f"base {base!r} cannot be loaded ({first}); give model.base a local folder, or `tiny`") from e


def adapter_config(adapter: Mapping[str, Any] | PeftConfig) -> PeftConfig:
    """A PEFT config from a mapping that reads like an adapter_config.json (`peft_type: SVF`, `target_modules: mlp`).

    Raises:
        ConfigError: An unknown peft_type or key, with the nearest valid name.
    """
    if isinstance(adapter, PeftConfig):
        return adapter
    options = dict(adapter)
    peft_type = str(options.pop("peft_type", "SVF")).upper()
    methods = {str(getattr(kind, "value", kind)): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in methods:
        raise ConfigError(f"unknown adapter.peft_type {peft_type!r}{nearest(peft_type, methods)}")
    cls = methods[peft_type]
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in options:
        if key not in known:
            raise ConfigError(f"unknown key adapter.{key} for {peft_type}{nearest(key, known)}")
    return cls(**options)


def build_policy(base: PreTrainedModel, adapter: Mapping[str, Any] | PeftConfig) -> PeftModel:
    """The base with a fresh adapter named `default`; at z = 1 an SVF policy equals the base bit for bit."""
    config = adapter_config(adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Already found a `peft_config` attribute.*")
        model = get_peft_model(base, config)
    return model.eval()


def load_expert(policy: PeftModel, folder: Path) -> None:
    """Put an expert's weights into the adapter `default`.

    Raises:
        ExpertError: The folder is damaged or does not fit the model.
    """
    if isinstance(policy.peft_config["default"], SVFConfig):
        expert = read_expert(folder, name="expert")
        warn_of_another_precision({"the expert": expert.base_quantisation}, policy)
        state = {f"base_model.model.{module}.svf_z.delta": delta_R for module, delta_R in expert.deltas.items()}
    elif (folder / "adapter_config.json").is_file():
        state = load_peft_weights(str(folder), device="cpu")
    else:
        raise ExpertError(f"{folder} is no adapter folder; it must hold adapter_config.json")
    set_peft_model_state_dict(policy, state)


def export_merged(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write the policy as a plain model folder, with the active adapter merged: what lm-eval, vLLM and others read.

    Without a second copy of the weights in memory; an SVF policy is bit for bit what it was before.

    Args:
        policy: The model; its weights must be whole and not quantised.
        tokenizer: Saved beside it, chat template included.
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds files, or the adapter cannot be merged.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one to export to")
    base, prefix = policy.get_base_model(), policy.base_model.prefix
    policy.merge_adapter()
    try:
        weights = {}
        for name, value in base.state_dict().items():
            parts = name.split(".")
            if "original_module" in parts or any(part.startswith(prefix) for part in parts):
                continue  # the adapter's own, and what a module trained whole replaces
            name = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
            weights[name] = value
        base.save_pretrained(folder, state_dict=weights)
    finally:
        policy.unmerge_adapter()
    tokenizer.save_pretrained(folder)
    return folder


def reference(policy: PeftModel) -> Any:
    """Context manager: inside, `policy` is the base model."""
    return policy.disable_adapter()


def hidden_states(policy: PeftModel, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Last hidden states (B, T, D), after the final norm: what lm_head reads.

    Args:
        policy: The model.
        input_ids_BT: int64, left-padded prompts followed by right-padded completions.
        attention_mask_BT: int64, 1 on real tokens. Positions count real tokens, as in generation.
    """
    model = policy.get_base_model()
    backbone = model.base_model if model.base_model is not model else model.model  # Llama 4's prefix names nothing
    positions_BT = (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)
    output = backbone(
        input_ids=input_ids_BT, attention_mask=attention_mask_BT, position_ids=positions_BT, use_cache=False
    )
    return output.last_hidden_state


@contextmanager
def checkpointed(policy: PeftModel, wanted: bool = True) -> Iterator[None]:
    """Inside, a forward pass keeps each decoder layer's input only; the rest is computed again in the backward pass.

    transformers does so in training mode, and the policy is never in it (dropout). So the decoder layers alone say that
    they train; what lies within them, dropout included, does not.

    Args:
        policy: The model.
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
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
