"""What the files of an expert folder are called, what is in them, and how they are sealed."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "BASE", "CONFIG", "FORMAT_VERSION", "LARGEST_ADAPTER", "LARGEST_CONFIG", "LARGEST_EXPERT", "OLD_FIELDS",
    "OLD_FORMS", "ROLES", "SAVED", "TRAINED_ON", "WEIGHTS",
    "checksums", "config_sha256", "delta_key", "layer_of", "mixture_facts", "module_kind", "module_of", "module_path",
    "name_of", "path_in_layer", "peft_type", "plain_name",
]  # fmt: skip

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRAINED_ON = "trained_on.json"  # shots and protocol of an adapter whose config has no place for them
FORMAT_VERSION = 2  # 1 had no config_sha256
OLD_FORMS, OLD_FIELDS = ("auto", "merged"), frozenset({"init_std"})  # in experts that earlier versions saved
BASE = "base_model.model."  # PEFT's name for the base model, in front of every module path
LARGEST_CONFIG, LARGEST_EXPERT, LARGEST_ADAPTER = 2**23, 2**30, 2**36
SAVED = {  # of an adapter's config: what is no setting, but written when it is saved
    *("task", "step", "score", "base_fingerprint", "base_quantisation", "shots", "protocol", "shuffled"),
    *("trained_parametrization", "expert_format_version", "sha256", "config_sha256", "inference_mode"),
}
ROLES = ("mlp", "attention", "all-linear")  # words of target_modules; any other string is a regular expression
_UP_TO_LAYER = re.compile(r"^.*?\.(\d+)\.")  # the first number of a path is the layer's; a later one is an MoE expert's
_KEY = re.compile(rf"{re.escape(BASE)}(?P<module>\w+(?:\.\w+)*)\.svf_z\.delta", re.ASCII)


def delta_key(module: str) -> str:
    """The name of a module's z - 1 in the weights file."""
    return f"{BASE}{module}.svf_z.delta"


def module_of(key: str) -> str | None:
    """The module path in a key of `delta_key`; None for any other key."""
    match = _KEY.fullmatch(key)
    return match and match["module"]


def module_path(name: str) -> str:
    """A module's path in the base model, from its path in a PeftModel."""
    return name.removeprefix(BASE)


def peft_type(adapter: Mapping[str, Any]) -> str:
    """The PEFT method of an adapter as people write it: SVF by default."""
    return str(adapter.get("peft_type", "SVF")).upper()


def layer_of(module: str) -> int | None:
    """The number of a module's decoder layer; None outside of one."""
    match = _UP_TO_LAYER.match(module)
    return match and int(match[1])


def path_in_layer(module: str) -> str:
    """A module's path inside its decoder layer: "mlp.experts.0.up_proj"."""
    return _UP_TO_LAYER.sub("", module, count=1)


def module_kind(module: str) -> str:
    """What the modules of all layers, and of all experts of an MoE layer, share: "mlp.experts.up_proj"."""
    return re.sub(r"\.\d+(?=\.)", "", path_in_layer(module))


def name_of(folder: str | Path) -> str:
    """What an expert is called by its folder: its name, or for `runs/<name>/expert` the run's."""
    resolved = Path(folder).expanduser().resolve()
    return plain_name(resolved.parent.name if resolved.name == "expert" else resolved.name)


def plain_name(text: str) -> str:
    """A good name out of any folder's: characters that names do not have become `_`."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:64]
    return name if name.strip(".") else "expert"


def checksums(config: Mapping[str, Any], weights: bytes | None = None) -> dict[str, Any]:
    """A config with the checksums of a file of weights, where given, and of itself; of this format."""
    own = {} if weights is None else {"sha256": hashlib.sha256(weights).hexdigest()}
    stamped = {**config, "expert_format_version": FORMAT_VERSION, **own}
    return {**stamped, "config_sha256": config_sha256(stamped)}


def config_sha256(config: Mapping[str, Any]) -> str:
    """The checksum of an adapter_config.json, and through its `sha256` of the weights: over all fields but itself."""
    rest = {key: value for key, value in config.items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def mixture_facts(parts: Sequence[Any]) -> dict[str, Any]:
    """What a mixture says of its base, its order and its rows: what all its parts, experts or configs, say.

    Where they differ it has no fingerprint, was trained at the precisions of all, and is as shuffled as one of them;
    the revision is the first part's, as is the name of the base. It has seen the shots of all.
    """
    names = ("base_fingerprint", "base_quantisation", "revision", "shuffled")
    said = {name: list(dict.fromkeys(getattr(part, name) for part in parts)) for name in names}
    facts = {name: values[0] for name, values in said.items()}
    if len(said["base_fingerprint"]) > 1:
        facts["base_fingerprint"] = None
    if len(said["base_quantisation"]) > 1:
        precisions = (precision or "unquantised" for precision in said["base_quantisation"])
        facts["base_quantisation"] = " and ".join(sorted({one for of in precisions for one in of.split(" and ")}))
    if len(said["revision"]) > 1:
        revisions = ", ".join(str(revision or "none") for revision in said["revision"])
        warnings.warn(
            f"a mixture of experts of several revisions of a base ({revisions}) names the first", stacklevel=3
        )
    if len(said["shuffled"]) > 1:
        facts["shuffled"] = next(seed for seed in said["shuffled"] if seed is not None)
        warnings.warn(
            f"a mixture that a shuffled control is part of is marked as shuffled (seed {facts['shuffled']})",
            stacklevel=3,
        )
    protocols = {part.protocol for part in parts}
    facts["protocol"] = "paper" if "paper" in protocols else "clean" if "clean" in protocols else None
    facts["shots"] = sorted({shot for part in parts for shot in part.shots or ()}) or None
    return facts
