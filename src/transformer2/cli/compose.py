"""From `--config` files and dotted flags to one plain dict.

Order, later wins: `_base_` files of a config, the config, further configs, dotted flags. Everything is merged before
`${...}` is resolved, so an override reaches every place that refers to it (jsonargparse would resolve each file alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from transformer2.errors import ConfigError, nearest

PACKAGED = Path(__file__).parent.parent  # holds conf/ in an installed package


@dataclass
class Flags:
    """A command's arguments, taken apart.

    Attributes:
        configs: Values of `--config`.
        overrides: Dotted keys and their text, in order.
        switches: Flags without a value (`--print_config`).
        options: Plain flags with a value (`--run_dir`).
    """

    configs: list[str] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    options: dict[str, str] = field(default_factory=dict)

    def with_engine(self) -> Flags:
        """`--rollout ENGINE` as a config below the others, whose other keys may differ, and an override."""
        if (engine := self.options.get("rollout")) is None:
            return self
        files = [f"conf/rollout/{engine}.yaml", *self.configs]
        return replace(self, configs=files, overrides=[("model.rollout", engine), *self.overrides])


def parse_flags(args: Sequence[str], options: Sequence[str], switches: Sequence[str], keys: Sequence[str]) -> Flags:
    """Take arguments apart; abbreviations are refused rather than guessed.

    Args:
        args: What follows the command.
        options: Names of flags with a value.
        switches: Names of flags without one.
        keys: Top-level config keys; `--key.sub value` overrides them.

    Raises:
        ConfigError: An unknown flag (with the nearest one) or a flag without its value.
    """
    flags, rest = Flags(), list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument {word!r}; flags look like --key value or --key=value")
        name, equals, value = word[2:].partition("=")
        if name in switches and not equals:
            flags.switches.add(name)
            continue
        if name != "config" and name not in options and name.partition(".")[0] not in keys:
            raise ConfigError(f"unknown flag --{name}{nearest(name, ['config', *options, *switches, *keys])}")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise ConfigError(f"--{name} needs a value")
            value = rest.pop(0)
        if name == "config":
            flags.configs.append(value)
        elif name in options:
            flags.options[name] = value
        else:
            flags.overrides.append((name, value))
    return flags


def compose(
    configs: Sequence[str],
    overrides: Sequence[tuple[str, str]],
    keys: Sequence[str],
) -> dict[str, Any]:
    """Merge, resolve and check the top-level keys.

    Args:
        configs: Config files.
        overrides: Dotted keys and their text.
        keys: The known top-level keys.

    Raises:
        ConfigError: A missing or unreadable file, an unknown top-level key, an unresolvable `${...}`.
    """
    merged = OmegaConf.create({})
    for name in configs:
        merged = _merge(merged, _load(find_config(name), ()))
    try:
        for key, text in overrides:
            OmegaConf.update(merged, key, _value(key, text), merge=False, force_add=True)
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        raise ConfigError(f"config cannot be resolved: {str(e).splitlines()[0]}") from e
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items()}
    for key in named:
        if key not in keys:
            raise ConfigError(f"unknown config key {key!r}{nearest(key, keys)}")
    return named


def find_config(name: str) -> Path:
    """A file here, else the file of that name that ships with the package (`conf/tiny_math.yaml`).

    Raises:
        ConfigError: Neither exists; the message says the nearest shipped one.
    """
    for path in (Path(name), PACKAGED / name, PACKAGED / "conf" / name):
        if path.is_file():
            return path
    shipped = sorted(str(p.relative_to(PACKAGED)) for p in (PACKAGED / "conf").rglob("*.yaml"))
    raise ConfigError(f"config {name!r} not found{nearest(name, shipped)}")


def _load(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path.name} is its own _base_; break the circle")
    try:
        config = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as e:
        raise ConfigError(f"{path} cannot be read as YAML ({' '.join(str(e).split())})") from e
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} holds a {type(config).__name__}, not keys and values")
    bases = OmegaConf.to_container(config).get("_base_") or []  # type: ignore[union-attr]  # a DictConfig gives a dict
    config.pop("_base_", None)
    merged = OmegaConf.create({})
    for base in [bases] if isinstance(bases, str) else bases:
        beside = path.parent / base
        merged = _merge(merged, _load(beside if beside.is_file() else find_config(base), (*seen, path)))
    return _merge(merged, config)


def _merge(below: DictConfig, above: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(below, above)
    assert isinstance(merged, DictConfig)
    return merged


def _value(key: str, text: str) -> Any:
    """A flag's text as YAML would read it, and `1e-3` as the number people mean (YAML 1.1 reads it as a string)."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"--{key}: {text!r} is no YAML value") from e
    if isinstance(value, date):
        return text  # a date is a text like any other to a constructor
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
