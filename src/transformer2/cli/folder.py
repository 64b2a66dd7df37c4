"""The run folder: one run each, whoever starts two at once, and none left behind by a command that did nothing."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from transformer2.errors import ConfigError, shown

if TYPE_CHECKING:
    from transformer2.cli.compose import Flags

RUN_DIR_VARIABLE = "TRANSFORMER2_RUN_DIR"
KEPT = ("report.json", "records.jsonl", "validation.txt", "checkpoints", "expert")  # what a run is for
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # the first that is set counts, as in Lightning


@contextmanager
def run_folder(given: str | None, name: str, resumed: bool = False) -> Iterator[Path]:
    """Where the run is kept: a folder that holds no other run, claimed until the command ends.

    Rank 0 chooses; the processes it starts inherit its choice. A command that fails before its first step, or before
    anything else that a run is for, removes what it wrote.

    Args:
        given: `--run_dir`; None takes runs/<name>, with a number where that holds a run already.
        name: The run's name.
        resumed: The folder holds a run, which is resumed.

    Raises:
        ConfigError: `--run_dir` holds a run, or is another command's, or no folder can be made there.
    """
    rank = next((int(os.environ[variable]) for variable in RANKS if variable in os.environ), 0)
    if rank:
        chosen = given or os.environ.get(RUN_DIR_VARIABLE)
        if chosen is None:
            raise ConfigError("processes started by torchrun or SLURM need --run_dir, so that they agree on the folder")
        yield Path(chosen)
        return
    number = 1
    while True:
        folder = Path(given or f"runs/{name}{f'-{number}' * (number > 1)}")
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        fresh = _make(folder)
        lock = _lock(folder)
        if lock is not None and (resumed or fresh or not holds_run(folder)):
            break
        if lock is not None:
            os.close(lock)
        if given is not None:
            why = "is in use by another command" if lock is None else "already holds a run"
            raise ConfigError(f"--run_dir {given} {why}; give another folder{'' if lock is None else ' or remove it'}")
        number += 1
    if not resumed and (folder / "config.yaml").exists():  # of a command that was killed
        _clear(folder, set())
    os.environ[RUN_DIR_VARIABLE] = str(folder)
    theirs = {path.name for path in folder.iterdir()}
    try:
        yield folder
    except BaseException:
        if all(path.name in theirs or _is_preliminary(path) for path in folder.iterdir()):
            _clear(folder, theirs)
            with suppress(OSError):  # up to the first that holds something
                for path in made if fresh else ():
                    path.rmdir()
        raise
    finally:
        os.close(lock)
        os.environ.pop(RUN_DIR_VARIABLE, None)


def check_unnamed(flags: Flags) -> None:
    """Refuse what does not go with the flag that says the folder: a `--name` (one in a config file may stay), and a
    config that the run's own would replace.

    Raises:
        ConfigError: There is one.
    """
    for option in ("run_dir", "resume"):
        if option in flags.options and any(key == "name" for key, _ in flags.overrides):
            raise ConfigError(f"--name names a folder in runs/, and --{option} says which it is; leave --name out")
    own = os.path.realpath(os.path.join(flags.options.get("run_dir", ""), "config.yaml"))
    if "run_dir" in flags.options and own in map(os.path.realpath, flags.configs):
        raise ConfigError(
            f"the run would replace --config {shown(own)} by its own; give another --run_dir, or a copy of the config"
        )


def check_writable(folder: str | Path, flag: str = "--run_dir") -> None:
    """Find out before anything is loaded whether files can be kept there; leaves nothing behind.

    Raises:
        ConfigError: It cannot, with the system's reason.
    """
    try:
        whole = Path(folder).absolute()
        there = next(path for path in (whole, *whole.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(100_000))
    except OSError as e:
        raise ConfigError(f"{shown(folder)} cannot be written to ({e.strerror}); give another {flag}") from e


def check_ranks() -> None:
    """The variables by which launchers number processes; Lightning and torch read them while they are imported.

    Raises:
        ConfigError: One of them holds no number.
    """
    for name in (*RANKS, "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "SLURM_LOCALID"):
        if not re.fullmatch("[0-9]{1,9}", text := os.environ.get(name, "0"), re.ASCII):
            raise ConfigError(
                f"the environment variable {name} must be a number, not {shown(repr(text), 60)}; unset it"
            )


def config_name(config: str) -> str:
    """What a run of a config file is called: as the file is, or as the run that wrote it, whose folder it is in."""
    path = Path(config)
    ran = path.name == "config.yaml" and any((path.parent / kept).exists() for kept in KEPT)
    return path.absolute().parent.name if ran else path.stem


def holds_run(folder: Path) -> bool:
    """Whether there is more in a folder than what a command writes before it has anything to show."""
    left = [path.name for path in folder.iterdir() if not _is_preliminary(path)]
    return bool(left) and ((folder / "config.yaml").exists() or not set(KEPT).isdisjoint(left))


def _is_preliminary(path: Path) -> bool:
    if path.is_dir():
        return not any(path.iterdir())
    return bool(re.match(r"(config|hparams)\.yaml$|events\.out\.tfevents|\.config\.yaml\.", path.name))


def _clear(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept and _is_preliminary(path):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make(folder: Path) -> bool:
    """Make a folder; whether it is new."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        return True
    except FileExistsError:
        if folder.is_dir():
            return False
        raise ConfigError(f"the run folder {folder} is a file; give another --run_dir") from None
    except OSError as e:
        raise ConfigError(f"the run folder {folder} cannot be made ({e.strerror}); give another --run_dir") from e


def _lock(folder: Path) -> int | None:
    """Claim a folder, as long as the descriptor is open; None where another command has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        pass
    return descriptor
