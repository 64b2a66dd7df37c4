"""Which modules are tuned: roles ("mlp", "attention", "all-linear"), names and regular expressions, for any decoder.

A role is read off the path of a linear layer inside a numbered decoder layer: the nearest ancestor that says what it
is decides (GPT-2 has a `c_proj` under `attn` and another under `mlp`). Routers, the output head, embeddings, the
towers of other modalities and Mamba's dt_proj (whose weight is read without a call) have no role; a list or a regular
expression reaches every linear layer of the language model but the output head. A tower and its projector are never
tuned: what they make of a picture is kept between steps, and layer 3 means the language model's.

Departures: the reference code tunes what has "mlp" in its name; PEFT ignores names that match nothing, here they fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from transformer2.errors import ConfigError
from transformer2.svf.format import ROLES, layer_of, path_in_layer
from transformer2.svf.register import register_after

if TYPE_CHECKING:
    from transformer2.svf.config import SVFConfig
    from transformer2.svf.layer import SVFLayer

__all__ = [
    "ROLES", "check_all_called", "features_of", "find_targets", "is_excluded", "language_model",
    "role_of", "tower_refused",
]  # fmt: skip

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert|dense_?relu_?dense", re.IGNORECASE)
# OPT and friends keep their feed-forward layers directly in the decoder layer.
_MLP_LEAF = re.compile(r"fc\d|fc_in|fc_out|(gate|up|down)_proj|dense_h_to_4h|dense_4h_to_h|wi(_\d)?|wo|w[123]")
_ROUTER = re.compile(r"gate|(.*_)?router|shared_expert_gate")
# Mamba and its kin multiply by this one's weight without calling it, so a z on it would do nothing.
_NEVER_CALLED = re.compile(r"dt_proj")
_OTHER_MODALITY = re.compile(r"vision|visual|audio|image|speech", re.IGNORECASE)


def features_of(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, dense, transposed (Conv1D) or quantised; None for anything else."""
    if isinstance(module, BaseTunerLayer | NonDynamicallyQuantizableLinear):
        return None  # the second is part of nn.MultiheadAttention, which reads its weight and never calls it
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    n, m = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (n, m) if isinstance(n, int) and isinstance(m, int) else None


def role_of(name: str) -> str | None:
    """The role of a linear layer by its module path: "mlp", "attention", "other" (in a decoder layer), or None."""
    parts = name.split(".")
    inside = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), None)
    if inside is None or any(_OTHER_MODALITY.search(part) for part in parts):
        return None
    if any(_ROUTER.fullmatch(part) for part in parts[inside:]) or _NEVER_CALLED.fullmatch(parts[-1]):
        return None
    for ancestor in reversed(parts[inside:-1]):
        if _ATTENTION.search(ancestor):
            return "attention"
        if _MLP.search(ancestor):
            return "mlp"
    return "mlp" if _MLP_LEAF.fullmatch(parts[-1]) else "other"


def language_model(model: nn.Module) -> str:
    """Path of the decoder, with a dot behind it, in a model with towers of other modalities; "" where all is language.

    Args:
        model: A transformers model without PEFT around it.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return ""
    decoder = cast(PreTrainedModel, model).get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def tower_refused(model: nn.Module, name: str, asked: str) -> ConfigError:
    """What is said of an adapter that would train a layer outside of the language model.

    Args:
        model: As for `language_model`.
        name: Path of the layer.
        asked: Who reaches it: "target_modules=['fc1']".
    """
    inside = language_model(model)
    around = inside.removesuffix(".").rpartition(".")[0]
    beside = [f"{around}.{child}".strip(".") for child, _ in model.get_submodule(around).named_children()]
    others = [other.rsplit(".", 1)[-1] for other in beside if f"{other}." != inside]
    return ConfigError(
        f"{asked} reaches {name}, and only the language model ({inside}*) is tuned: what the tower and its projector "
        "make of a picture is kept between steps; name layers of the language model, or leave these out with "
        f"exclude_modules='.*({'|'.join(others)}).*'"
    )


def find_targets(model: nn.Module, config: SVFConfig) -> list[str]:
    """The modules that a config tunes, as full paths in module order.

    Raises:
        ConfigError: The output head, the embeddings or a tower are asked for, a name matches nothing, experts are fused
            3-D parameters, or nothing is left to tune.
    """
    heads, inside = _head_names(model), language_model(model)
    everywhere = [name for name in _linear_names(model) if name not in heads]
    linear = [name for name in everywhere if name.startswith(inside)]
    outside = [name for name in everywhere if not name.startswith(inside)]
    target = config.target_modules
    chosen: set[str] = set()
    for entry in [target] if isinstance(target, str) else sorted(target):
        if entry in ROLES:
            if entry != "attention":
                _check_no_fused_experts(model, config)
            chosen.update(name for name in linear if role_of(name) and entry in (role_of(name), "all-linear"))
            continue
        asked = entry if isinstance(target, str) else [entry]  # an expression, or a name
        if head := next((name for name in heads if _is_named(name, asked)), None):
            raise ConfigError(
                f"target_modules={entry!r} reaches {head}: SVF tunes linear layers of decoder blocks, not the output "
                "head or the embeddings; use 'all-linear', or name the layers"
            )
        found = [name for name in linear if _is_named(name, asked)]
        beyond = [name for name in outside if _is_named(name, asked) and not is_excluded(name, config)]
        if beyond and (not found or _says(entry, outside, linear)):
            raise tower_refused(model, beyond[0], f"target_modules={entry!r}")
        if not found:
            if layer_of(entry) is not None and not isinstance(target, str):
                raise ConfigError(_absent(target, linear))
            raise ConfigError(_nothing(entry, linear))
        chosen.update(found)
    kept = [name for name in linear if name in chosen and not is_excluded(name, config) and _in_layers(name, config)]
    if not kept:
        note = f", layers_to_transform={config.layers_to_transform}" if config.layers_to_transform is not None else ""
        note += f", exclude_modules={config.exclude_modules}" if config.exclude_modules else ""
        raise ConfigError(_nothing(target, linear, note))
    listed = config.layers_to_transform if config.sha256 is None else None  # of a saved expert the weights say it
    for layer in () if isinstance(listed, int) else listed or ():
        if not any(_in_layers(name, replace(config, layers_to_transform=layer)) for name in kept):
            raise ConfigError(f"layer {layer} of layers_to_transform is none of this model's with such modules")
    return kept


def _linear_names(model: nn.Module) -> list[str]:
    names: list[str] = []
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in wrapped):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped.append(f"{name}.")
            # An SVF layer stands for the layer inside it; other tuners' layers are left alone.
            if getattr(module, "svf_z", None) is not None:
                names.append(name)
        elif name and features_of(module) is not None:
            names.append(name)
    return names


def _head_names(model: nn.Module) -> set[str]:
    """Paths of the input embedding and the output head, by identity and by PEFT's list of names."""
    getters = (getattr(model, name, None) for name in ("get_output_embeddings", "get_input_embeddings"))
    modules = [get() for get in getters if callable(get)]
    return {
        name
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in EMBEDDING_LAYER_NAMES or (name and any(module is other for other in modules))
    }


def _says(entry: str, outside: Iterable[str], inside: Iterable[str]) -> bool:
    """Whether a name or expression has a word of the paths outside of the language model that none inside has."""
    words, own = ({part for name in names for part in name.split(".")} for names in (outside, inside))
    return not (words - own).isdisjoint(re.findall(r"[A-Za-z_]\w*", entry))


def _is_named(name: str, entries: str | Iterable[str]) -> bool:
    """Whether a regular expression matches a path, or one of several names is its end."""
    if isinstance(entries, str):
        return re.fullmatch(entries, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in entries)


def is_excluded(name: str, config: SVFConfig) -> bool:
    """Whether a module is left out by `exclude_modules` or belongs to `modules_to_save`."""
    if _is_named(name, config.exclude_modules or ()):
        return True
    # What PEFT trains whole must not be wrapped as well.
    return any(re.match(rf"(^|.*\.){re.escape(m)}($|\..*)", name) for m in config.modules_to_save or ())


@contextmanager
def check_all_called(layers: Mapping[str, SVFLayer]) -> Iterator[None]:
    """Refuse layers that a forward pass inside bypasses: it reads their weight or calls what they wrap, but never them.

    z would do nothing there in training, and act once it is merged into the weight. A layer that is not used at all
    passes.
    """
    called: set[str] = set()
    entered: set[str] = set()
    hooks = []
    for name, layer in layers.items():
        layer.weight_was_read = False
        hooks.append(layer.register_forward_pre_hook(lambda module, args, name=name: called.add(name)))
        hooks.append(layer.base_layer.register_forward_pre_hook(lambda module, args, name=name: entered.add(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    bypassed = [
        name for name, layer in layers.items() if name not in called and (layer.weight_was_read or name in entered)
    ]
    if bypassed:
        leaves = sorted({name.rpartition(".")[2] for name in bypassed})
        raise ConfigError(
            f"this model uses the weight of {bypassed[0]} without calling it ({len(bypassed)} such layers), so z would "
            f"do nothing there in training; leave them out with exclude_modules={leaves}"
        )


def _in_layers(name: str, config: SVFConfig) -> bool:
    layers = config.layers_to_transform
    if layers is None:
        return True
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern or [r"\w+"]
    for pattern in patterns:
        # The first number is the layer; a later one is an expert's.
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if match:
            return int(match.group(1)) in ([layers] if isinstance(layers, int) else layers)
    return False


def _check_no_fused_experts(model: nn.Module, config: SVFConfig) -> None:
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            path = f"{name}.{parameter_name}"
            if parameter.ndim == 3 and "expert" in name.lower() and role_of(path) == "mlp" and _in_layers(path, config):
                raise ConfigError(
                    f"{path} holds the weights of all experts as one {parameter.ndim}-D parameter "
                    f"{tuple(parameter.shape)}, which SVF cannot tune; use target_modules='attention' or name the "
                    "linear layers to tune"
                )


def _absent(paths: Iterable[str], linear: Sequence[str]) -> str:
    """What is said of full paths that are another model's: an expert's, mostly."""
    absent = [path for path in sorted(paths) if not any(_is_named(name, [path]) for name in linear)]
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return (
        f"this model has no {absent[0]}{more}, which target_modules, or the expert, names; z belongs to a base with "
        "the same modules (docs/svf.md): give that one, or train on this one"
    )


def _nothing(asked: object, linear: Iterable[str], note: str = "") -> str:
    leaves = sorted({path_in_layer(name) for name in linear})
    known = [*ROLES, *leaves, *(leaf.rsplit(".")[-1] for leaf in leaves)]
    near = get_close_matches(asked, [name for name in known if name != asked]) if isinstance(asked, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else f"; linear layers here: {', '.join(leaves[:12]) or 'none'}"
    return f"target_modules={asked!r}{note} matches no linear layer of this model{hint}"


register_after(__name__)
