"""A run of a study, by its command line: its config, what it is refused for, and the folder that it has of its own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from transformer2 import tasks
from transformer2.cli.adapt import strategies_of
from transformer2.cli.check import check
from transformer2.cli.compose import ADAPT_DEFAULT, PACKAGED, compose, merge, parse_flags
from transformer2.cli.keys import ADAPT_KEYS, KEYS, UNREAD
from transformer2.files import file_digest, source_digest
from transformer2.svf.format import CONFIG

__all__ = ["checked", "composed", "folder_name"]

RUN_OPTIONS = ("expert", "shuffle_expert")  # plain flags with a value, of those that a run may have
OF_ROWS = (".jsonl", ".gz", ".parquet", ".arrow")
OF_A_MODEL = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # files of a base or an expert


@cache  # studies share most of their runs
def composed(args: tuple[str, ...]) -> dict[str, Any]:
    """The config of a command line; of `adapt` without one, the user's file in place of the shipped one, if any."""
    command, *words = args
    keys = ADAPT_KEYS if command == "adapt" else KEYS
    flags = parse_flags(words, RUN_OPTIONS, (), keys)
    if command == "adapt" and not flags.configs:
        own = merge([ADAPT_DEFAULT]) != merge([str(PACKAGED / ADAPT_DEFAULT)])  # what ships makes no other run
        flags.configs += [ADAPT_DEFAULT] if own else []
    return compose(flags.configs, flags.overrides, keys)


@cache
def checked(args: tuple[str, ...]) -> None:
    """Refuse what the command would refuse before it starts.

    Raises:
        UserError: See `check`.
    """
    config = deepcopy(composed(args))
    check(config, args[0], folders=False)
    if args[0] == "adapt":
        strategies_of(config, [word[2:] for word in args[1::2] if not UNREAD.fullmatch(word[2:])])  # left out of it


def folder_name(seed: int, args: tuple[str, ...], reread: bool = False) -> str:
    """By all that a run is given, its composed config included: the same run is the same folder in every study.

    Args:
        seed: Of the run.
        args: Its command line, with the names of other runs' folders in place of their paths.
        reread: Read the config files again; they may have been edited since.
    """
    config = dict(composed.__wrapped__(args) if reread else composed(args))
    config.pop("name", None)  # a run of a study has a folder of its own
    expert, shuffle = (args[args.index(f"--{name}") + 1] if f"--{name}" in args else None for name in RUN_OPTIONS)
    model = config.get("model") or {}
    named, inner = [config, expert], (model.get("model_kwargs") or {}).get("subfolder")
    if inner:
        named.append(os.path.join(str(model.get("base")), str(inner)))
    rows = [] if args[0] == "spectrum" else _rows(config)
    given = [args[0], config, expert, *([] if shuffle is None else [shuffle]), *_contents(named), *rows]
    whole = json.dumps(given, sort_keys=True, default=str)
    task = str((config.get("data") or {}).get("task", "")).rpartition(".")[2]
    digest = hashlib.sha256(whole.encode()).hexdigest()[:10]
    return "-".join(part for part in (args[0], task, f"s{seed}", digest) if part)


def _rows(config: Mapping[str, Any]) -> list[str]:
    """SHA-256 of the rows below `data_dir` that a run may read, and of the modules of tasks that are not ours."""
    data, adapt = config.get("data") or {}, config.get("adapt") or {}
    named = [(data.get("task"), "task_options", data), (adapt.get("dispatch_task"), "dispatch_options", adapt)]
    read = [tasks.get(name, **(given.get(options) or {})) for name, options, given in named if name]
    own = [digest for task in read if (digest := source_digest(type(task))) is not None]
    if root := data.get("data_dir"):  # a task that is not named is that of the expert, which may not be there yet
        known = frozenset(folder for task in read for folder in task.folders)
        any_task = own or not data.get("task")
        files = _row_files(Path(os.path.expanduser(root)), None if any_task else known, bool(own))
        own += [digest for file in files if (digest := file_digest(file, samples=True)) is not None]
    return own


@cache  # thousands of pictures may lie beside them
def _row_files(root: Path, folders: frozenset[str] | None, of_any_kind: bool) -> list[Path]:
    """Where `load_rows` looks for the rows of tasks with these folders; None: of any task."""
    others = set() if folders is None else {*tasks.names()} - folders
    inner = [folder for folder in root.glob("*") if folder.name not in others and folder.is_dir()]
    files = [*root.glob("*"), *(file for folder in inner for file in folder.glob("*"))]
    deep = [folder for folder in inner if folder.name in (folders or tasks.names())]
    files += [file for folder in deep for depth in ("*/*", "*/*/*") for file in folder.glob(depth)]
    return sorted(file for file in files if file.suffix in OF_ROWS or (of_any_kind and file.is_file()))


def _contents(value: Any) -> list[str]:
    """SHA-256 of what a config names: other rows, another expert or base in the same place are another run."""
    if isinstance(value, Mapping):
        source = _source(str(value.get("class_path", "")))
        return [*source, *(digest for inner in value.values() for digest in _contents(inner))]
    if isinstance(value, list | tuple):
        return [digest for inner in value for digest in _contents(inner)]
    if not isinstance(value, str) or "\0" in value:
        return []
    path = Path(os.path.expanduser(value))
    files = [path]
    if os.path.isdir(path):
        of_a_model = any((path / name).is_file() for name in ("config.json", CONFIG))
        files = sorted(file for file in path.iterdir() if file.suffix in OF_A_MODEL) if of_a_model else []
    return [digest for file in files if (digest := file_digest(file, samples=True)) is not None]


def _source(class_path: str) -> list[str]:
    """SHA-256 of the module of a class of one's own, which is not imported for it; of one that is installed, none."""
    root, module = class_path.partition(".")[0], class_path.rpartition(".")[0]
    with contextlib.suppress(ImportError, ValueError):
        for name in (root, module):  # to find torch.optim, torch would be imported, for seconds
            origin = getattr(importlib.util.find_spec(name), "origin", None) or ""
            if "site-packages" in origin or module.startswith("transformer2."):
                return []
        if origin and (digest := file_digest(origin)) is not None:
            return [digest]
    return []
