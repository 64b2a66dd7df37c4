"""Constructor arguments are the schema: types that carry their ranges, and the one check of both.

    lr: Annotated[float, "> 0", "<= 10"]     a finite number in (0, 10]
    num_completions: Count                   an integer of at least 1

Constructors check what they are given with `check_arguments`; the command line checks a config with the same `fits`
before anything heavy is imported (cli/schema.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from transformer2.errors import ConfigError, shown

__all__ = [
    "LARGEST_SEED",
    "OPTIMIZER_RANGES",
    "Count",
    "NotNegativeInt",
    "Objective",
    "Positive",
    "Seed",
    "Share",
    "Temperature",
    "check_arguments",
    "check_natural",
    "check_objective",
    "check_samples",
    "check_weights",
    "expected",
    "fits",
    "is_natural",
    "written",
]

Count = Annotated[int, ">= 1"]
NotNegativeInt = Annotated[int, ">= 0"]
Positive = Annotated[float, "> 0"]
Temperature = Annotated[float, ">= 0", "<= 100"]
Share = Annotated[float, ">= 0", "< 1"]
LARGEST_SEED = 2**32 - 1  # that numpy takes
Seed = Annotated[int, ">= 0", f"<= {LARGEST_SEED}"]
Objective = Literal["reinforce", "next_token"]  # of `model`, and of `data`, which has the solutions
# Of an optimizer's settings, whoever wrote the optimizer.
OPTIMIZER_RANGES: Mapping[str, Any] = {
    "lr": Annotated[float, "> 0", "<= 10"],
    "betas": tuple[Share, Share],
    "eps": Annotated[float, "> 0", "<= 1"],
    "weight_decay": Annotated[float, ">= 0", "<= 100"],
    "damping": Annotated[float, ">= 0.001", "<= 1000"],  # of NaturalGradient
}
NATURAL = "transformer2.module.natural.NaturalGradient"

LARGEST = 2**53  # integers beyond are no counts, and no doubles
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_WORDS = {
    float: "a number",
    int: "an integer",
    bool: "true or false",
    str: "a string that is not empty",
    NoneType: "null",
}


def check_arguments(section: str, constructor: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check arguments against the annotations of the constructor that received them.

    Args:
        section: What the arguments are called in messages: `model`, `data`, ...
        constructor: An `__init__`.
        values: Its `locals()`.

    Raises:
        ConfigError: The first value that its annotation does not admit.
    """
    for name, hint in get_type_hints(constructor, include_extras=True).items():
        if name in values and not fits(hint, values[name]):
            raise ConfigError(f"{section}.{name} must be {expected(hint)}, not {written(values[name])}")


def fits(hint: Any, value: Any) -> bool:
    """Whether an annotation admits a value: numbers are finite, strings are not empty, booleans are no numbers."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = (bound.split() for bound in hint.__metadata__)
        return fits(args[0], value) and all(_COMPARE[sign](value, float(limit)) for sign, limit in bounds)
    if origin in (Union, UnionType):
        return any(fits(arg, value) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if dict in (origin, hint):
        return isinstance(value, Mapping) and (hint is dict or all(isinstance(key, str) for key in value))
    if origin is tuple:
        same = isinstance(value, list | tuple) and len(value) == len(args)
        return same and all(map(fits, args, value))
    if origin in (list, set):
        return isinstance(value, list | tuple | set) and all(fits(args[0], item) for item in value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= LARGEST
    if hint is str:
        return isinstance(value, PathLike) or (isinstance(value, str) and bool(value.strip(" ")) and "\0" not in value)
    if hint in (bool, NoneType):
        return isinstance(value, hint)
    return isinstance(value, hint | Mapping) if is_dataclass(hint) else True  # checked where it becomes one


def check_weights(weights: Sequence[float], experts: int, mix: str = "delta") -> None:
    """Refuse mixing weights that are not one for each expert, are so large that logits may overflow, or have no sum."""
    if not all(abs(weight) <= 100 for weight in weights):  # nan is not
        raise ConfigError(f"weights of experts are numbers from -100 to 100, not {list(weights)}")
    if len(weights) != experts or not experts:
        raise ConfigError(f"there are {len(weights)} weights for {experts} experts; give one weight per expert")
    if mix == "normalised" and abs(sum(weights)) < 1e-6:
        raise ConfigError(f"weights {list(weights)} sum to zero and cannot be normalised; use mix='delta'")


def check_samples(samples: int, temperature: float | None) -> None:
    """Refuse samples that are all alike (`model.test`)."""
    if samples and temperature == 0:
        raise ConfigError("model.test.samples are all alike at model.test.temperature 0; use one above 0")


def check_objective(objective: str, sampling: Mapping[str, Any], loss: Mapping[str, Any]) -> None:
    """Refuse settings of sampled completions where training samples none (`model.objective: next_token`)."""
    if objective != "next_token":
        return
    harmless = {
        "sampling.num_completions": (1,),
        "sampling.temperature": (1,),
        "loss.baseline": ("batch_mean", "none"),
        "loss.kl": ("full", "full_reverse"),
        "loss.mask_truncated": (False,),
        "loss.importance_cap": (None,),
    }
    given = {f"sampling.{k}": v for k, v in sampling.items()} | {f"loss.{k}": v for k, v in loss.items()}
    for key, values in harmless.items():
        if key in given and given[key] not in values:
            raise ConfigError(
                f"model.{key} {written(given[key])} is for sampled completions, and model.objective next_token samples "
                "none; leave it out"
            )


def is_natural(path: Any) -> bool:
    """Whether a class path is that of NaturalGradient or a subclass; a third party's class is imported to tell."""
    if path == NATURAL or not isinstance(path, str) or path.startswith("torch."):
        return path == NATURAL
    module, _, name = path.rpartition(".")
    try:
        kinds = getattr(import_module(module), name).__mro__
    except Exception:  # whatever a user's module may raise: it is said when the optimizer is built
        return False
    return any(f"{kind.__module__}.{kind.__qualname__}" == NATURAL for kind in kinds)


def check_natural(
    optimizer: str,
    lr: Any,
    adapter: Mapping[str, Any],
    recomputes: bool,
    objective: str,
    max_grad_norm: float | None = None,
) -> None:
    """Refuse NaturalGradient where a row has no z of its own to differentiate by, and at another optimizer's rate.

    Args:
        optimizer: Name of the class (it, or a subclass), or its path.
        lr: Its learning rate.
        adapter: What is trained, as in a config.
        recomputes: Whether activations are checkpointed.
        objective: `next_token` has no completions of the policy's own, which the Fisher information is of.
        max_grad_norm: Clips the gradient before it is divided: the step would shrink with it, and nothing be bounded.
    """
    name, kind = optimizer.rpartition(".")[2], str(adapter.get("peft_type", "SVF")).upper()
    beside_z = adapter.get("parametrization", "direct") != "direct" or adapter.get("modules_to_save")
    refused = {
        f"takes an lr of 0.05 to 10 (1 is a whole step), not {written(lr)}": isinstance(lr, int | float) and lr < 0.05,
        f"trains the z of SVF alone, not {kind}": kind != "SVF",
        "trains z itself and nothing beside it": beside_z,
        "learns from sampled completions, not from solutions": objective == "next_token",
        "does not go with memory.activation_checkpointing": recomputes,
    }
    for why, applies in refused.items():
        if applies:
            other = "choose another optimizer, such as --optimizer AdamW --optimizer.lr 3e-3"
            raise ConfigError(f"model.optimizer {name} {why}; {other}")
    if max_grad_norm is not None:
        raise ConfigError(
            f"model.max_grad_norm {max_grad_norm} would only shorten the steps of {name}, which damping bounds; set "
            "--model.max_grad_norm null, and --optimizer.lr for shorter steps"
        )


def expected(hint: Any) -> str:
    """An annotation in words: `a number > 0 or null`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{expected(args[0])} {' and '.join(hint.__metadata__)}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(expected, args)))
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list of {len(args)}, each {expected(args[0])}"
    if origin in (list, set):
        return f"a list, each {expected(args[0])}"
    return "keys and values" if dict in (origin, hint) else _WORDS.get(hint, "an instance of its class")


def written(value: Any) -> str:
    """A value as a message shows it: `null` and `true` as YAML writes them, and no longer than 60 characters."""
    words: dict[Any, str] = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else shown(repr(value), 60)
