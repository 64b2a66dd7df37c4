"""From `--config` files and dotted flags to one plain dict.

Order, later wins: `_base_` files of a config, the config, further configs, dotted flags. Everything is merged before
`${...}` is resolved, so an override reaches every place that refers to it (jsonargparse would resolve each file alone).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import KeyValidationError, OmegaConfBaseException

from transformer2.arguments import written
from transformer2.cli.keys import KEYS, OURS, sections, suggestion
from transformer2.cli.optimizers import HOMES, class_and_arguments, on_top
from transformer2.errors import ConfigError, nearest, one_line, shown

PACKAGED = Path(__file__).parent.parent  # holds conf/ in an installed package
ADAPT_DEFAULT = "conf/adapt_tiny.yaml"  # what `adapt` without a config is given
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException)
MAX_BYTES = 1_000_000  # of one config file; OmegaConf itself refuses keys given twice and aliases that explode
# `${model.optimizer.lr}`: settings of optimizer and schedule lie in init_args once they are merged.
REFERENCE = re.compile(r"(\$\{(?:model|\.)\.(?:optimizer|lr_scheduler)\.)(?!init_args[.}]|class_path\})")
KINDS = {"seq": "a list", "int": "a number", "float": "a number", "bool": "true or false", "null": "nothing"}


@dataclass
class Flags:
    """A command's arguments, taken apart.

    Attributes:
        configs: Values of `--config`.
        overrides: Dotted keys and their text, in order.
        switches: Flags without a value (`--print_config`).
        options: Plain flags with a value (`--run_dir`).
        repeated: Plain flags that may be given several times, and their values in order.
        words: What is no flag, and what follows `--`.
    """

    configs: list[str] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    options: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def parse_flags(
    args: Sequence[str],
    options: Sequence[str],
    switches: Sequence[str],
    keys: Sequence[str],
    repeated: Sequence[str] = (),
    takes_words: bool = False,
) -> Flags:
    """Take arguments apart; abbreviations are refused rather than guessed.

    Args:
        args: What follows the command.
        options: Names of flags with a value.
        switches: Names of flags without one.
        keys: Top-level config keys; `--key.sub value` overrides them.
        repeated: Names of flags with a value that may be given several times.
        takes_words: Whether words that are no flags are arguments, too.

    Raises:
        ConfigError: An unknown flag (with the nearest one) or a flag without its value.
    """
    flags, rest = Flags(), list(args)
    while rest:
        word = rest.pop(0)
        if word == "-h" and "help" in switches:
            word = "--help"
        if takes_words and (word == "--" or not word.startswith("--")):
            flags.words += rest if word == "--" else [word]
            rest = [] if word == "--" else rest
            continue
        if not word.startswith("--"):
            file = rest[0] if word in ("-c", "-config") and rest else word
            if keys and (file != word or file.endswith((".yaml", ".yml"))):
                raise ConfigError(f"unexpected argument {shown(repr(word))}; write --config {shown(file)}")
            raise ConfigError(f"unexpected argument {shown(repr(word))}; flags look like --key value or --key=value")
        name, equals, value = word[2:].partition("=")
        if name.partition(".")[0] in HOMES and "model" in keys:  # as Lightning's own command line has them
            name = f"model.{name}"
        if name in switches and not equals:
            flags.switches.add(name)
            continue
        if name in switches:
            raise ConfigError(f"--{name} takes no value; leave {value!r} out")
        known = [*options, *repeated, *(["config"] if keys else [])]
        if name not in known and name.partition(".")[0] not in keys:
            raise ConfigError(f"unknown flag --{name}{_flag_like(name, [*known, *switches], keys)}")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise ConfigError(f"--{name} needs a value")
            value = rest.pop(0)
        if not value.strip():
            raise ConfigError(f"--{name} is empty; give a value, or leave it out")
        if name == "config":
            flags.configs.append(str(home(value)))
        elif name in repeated:
            flags.repeated.setdefault(name, []).append(str(home(value)))
        elif name in options:
            if name in flags.options:
                raise ConfigError(f"--{name} is given twice; give it once")
            flags.options[name] = str(home(value))
        else:
            flags.overrides.append((name, value))
    return flags


def flags_of(args: Sequence[str], help_text: str, keys: Sequence[str] = (), takes_words: bool = False) -> Flags:
    """Take a command's arguments apart by its help: `--name VALUE`, `--name VALUE ...` (may be repeated) or `--name`.

    Args:
        args: What follows the command.
        help_text: Its flags, a line each; `--help` prints it and ends the command.
        keys: Top-level config keys.
        takes_words: Whether words that are no flags are arguments, too.

    Raises:
        ConfigError: As `parse_flags`.
    """
    named = dict(re.findall(r"^  --(\w+)( \S+(?: \.\.\.)?)?  ", help_text, re.MULTILINE))
    switches = ["help", *(name for name, value in named.items() if not value)]
    repeated = [name for name, value in named.items() if value.endswith("...")]
    options = [name for name in named if name not in (*switches, *repeated, *keys)]
    flags = parse_flags(args, options, switches, keys, repeated, takes_words)
    if "help" in flags.switches:
        print(help_text, end="")
        raise SystemExit(0)
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
    merged = merge(configs)
    for flag, text in overrides:
        key, value = flag, yaml_value(flag, text)
        if found := re.fullmatch(r"model\.(optimizer|lr_scheduler)(?:\.init_args)?(?:\.(.+))?", flag):
            key, value = "model", {found[1]: {found[2]: value} if found[2] else value}
        if key in keys and isinstance(value, dict):  # a section, on top of what is there, as a file's would be
            merged = _merge(merged, OmegaConf.create({key: value}), f"--{flag}")
            continue
        try:
            OmegaConf.update(merged, key, value, merge=False, force_add=True)
        except Exception as e:  # a path through what is not a mapping: OmegaConf raises another error for each case
            raise ConfigError(f"--{flag} {text}: there is no such key ({_one_line(e)})") from e
    try:
        plain: Any = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as e:
        raise ConfigError(f"config cannot be resolved: {_one_line(e)}") from e
    assert isinstance(plain, dict)
    for key in plain:
        if key not in keys:
            near = _without_section(str(key), keys) or nearest(str(key)[:60], keys)
            near = "; a config with it is for transformer2 adapt" if key == "adapt" else near
            raise ConfigError(f"unknown config key {written(key)}{near}")
    composed: dict[str, Any] = home(plain)
    return composed


def merge(configs: Sequence[str]) -> DictConfig:
    """Config files on top of each other, with the `${...}` that are in them.

    Raises:
        ConfigError: A missing or unreadable file, or one that does not fit on top of the others.
    """
    merged = OmegaConf.create({})
    for name in configs:
        merged = _merge(merged, _load(find_config(name), ()), name)
    return merged


def home(value: Any) -> Any:
    """A config's value with every leading `~/` expanded, as a shell does."""
    if isinstance(value, dict):
        return {key: home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [home(inner) for inner in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def find_config(name: str) -> Path:
    """A file here, else the file of that name that ships with the package (`conf/tiny_math.yaml`).

    Raises:
        ConfigError: Neither exists; the message says the nearest shipped one.
    """
    try:
        for path in (Path(name).expanduser(), PACKAGED / name, PACKAGED / "conf" / name):
            if path.is_file():
                return path
        if Path(name).is_dir():
            raise ConfigError(f"config {name!r} is a folder; name a file in it")
    except OSError as e:  # a name too long
        raise ConfigError(f"config {name[:60]!r} cannot be read ({e.strerror})") from e
    shipped = sorted(str(p.relative_to(PACKAGED)) for p in (PACKAGED / "conf").rglob("*.yaml"))
    raise ConfigError(f"config {name!r} not found{nearest(name, shipped)}")


def _load(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path.name} is its own _base_; break the cycle")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} is too large to be a config; give one of at most {MAX_BYTES} bytes")
    try:
        text = REFERENCE.sub(r"\1init_args.", path.read_bytes().decode())
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        config = OmegaConf.load(io.StringIO(text)) if isinstance(root, yaml.MappingNode) else None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8") from e
    except KeyValidationError as e:
        raise ConfigError(f"{path} has a key that is null or a list; put quotes around it, or remove it") from e
    except UNREADABLE as e:
        raise ConfigError(f"{path} cannot be read as YAML ({_one_line(e)}); correct it") from e
    if not isinstance(config, DictConfig):  # its words are not shown: it may be no config at all
        kind = "nothing" if root is None else KINDS.get(root.tag.rpartition(":")[2], "text")
        raise ConfigError(f"{path} holds {kind}, not keys and values; write lines such as `data: {{batch_size: 32}}`")
    plain: Any = OmegaConf.to_container(config)
    bases = plain.get("_base_")
    bases = [] if bases is None else [bases] if isinstance(bases, str) else bases
    if "_base_" in plain:
        del config["_base_"]
    if not isinstance(bases, list) or not all(isinstance(base, str) and base.strip() for base in bases):
        raise ConfigError(f"{path}: _base_ must be a config file or a list of them, not {shown(repr(bases), 60)}")
    merged = OmegaConf.create({})
    for base in bases:
        beside = path.parent / base
        merged = _merge(merged, _load(beside if beside.is_file() else find_config(base), (*seen, path)), base)
    return _merge(merged, config, str(path))


def _merge(below: DictConfig, above: DictConfig, name: str) -> DictConfig:
    """`above` on top; a section without a value (all of its lines commented out) leaves what is below."""
    for key, value in list(above.items_ex(resolve=False)):
        if value is None and isinstance(below._get_node(key), DictConfig):
            del above[key]
    _settle_classes(below, above)
    try:
        merged = OmegaConf.unsafe_merge(below, above)  # neither is used again
    except Exception as e:  # a list over a mapping and the like: OmegaConf lets some of Python's own errors through
        raise ConfigError(f"{name} does not fit on top of what is below it ({_one_line(e)})") from e
    assert isinstance(merged, DictConfig)
    return merged


def _settle_classes(below: DictConfig, above: DictConfig) -> None:
    """Word what both say of optimizer and schedule alike; what is below is taken up in what is above."""
    plain: Any = OmegaConf.to_container(below), OmegaConf.to_container(above)
    lower, upper = (part.get("model") or {} for part in plain)
    for key in HOMES if isinstance(lower, dict) and isinstance(upper, dict) else ():
        if key in upper:
            above["model"][key] = on_top(key, lower.get(key) or {}, class_and_arguments(key, upper[key]))
            if key in lower:
                del below["model"][key]


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {shown(error.problem, 60)}"
    return one_line(error, 200)


def _flag_like(wrong: str, flags: Sequence[str], keys: Sequence[str]) -> str:
    """What an unknown flag may stand for: a key without its section, another flag, a section misspelt, or a key."""
    head, _, tail = wrong.partition(".")
    if (last := wrong.rpartition(".")[2]) in flags:  # a key where there is no config: `ask --model.base`
        return f"; did you mean --{last}?"
    meant = _without_section(wrong, keys)
    if not meant and (get_close_matches(head, [*flags, *keys]) or not {"model", "data"} <= set(keys)):
        near = get_close_matches(wrong, [*flags, *(f"{key}.{tail}".rstrip(".") for key in keys)], n=1, cutoff=0.0)
        return f"; did you mean --{near[0]}?" if near else ""
    meant = meant or suggestion(wrong, sections("adapt" in keys))
    return meant.replace("mean ", "mean --").replace("----", "--")


def _without_section(wrong: str, keys: Sequence[str]) -> str:
    """`; did you mean data.data_dir?` for the exact name of a key, ours or others' word for it; else nothing."""
    ours = OURS.get(wrong.rpartition(".")[2])
    taken = {"model", "data"} <= set(keys) and (ours in keys or ours not in KEYS)  # a study takes no seed_everything
    known = sections("adapt" in keys) if taken else {}
    is_key = ours is not None or any(wrong in own for own in known.values())
    return suggestion(wrong, known) if known and is_key else ""


def yaml_value(flag: str, text: str) -> Any:
    """A flag's text, read as in a config file.

    Raises:
        ConfigError: It is not YAML.
    """
    if text.strip() == "-":  # to YAML, a list with nothing in it
        return "-"
    try:
        item = "- " + REFERENCE.sub(r"\1init_args.", text).replace("\n", "\n  ")
        items: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(item)))
        return items[0]
    except UNREADABLE as e:
        why = f"{text[:60]!r} is not a YAML value ({_one_line(e)})"
        raise ConfigError(f"--{flag}: {why}; put double quotes of its own around text") from e
