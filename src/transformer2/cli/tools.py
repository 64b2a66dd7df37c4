"""`decompose` and `experts`: commands that need no Trainer."""

from __future__ import annotations

from collections.abc import Sequence

from transformer2.cli.compose import parse_flags
from transformer2.errors import ConfigError

DECOMPOSE_HELP = """\
usage: transformer2 decompose --base BASE [--target_modules mlp|attention|all-linear|REGEX] [--cache_dir DIR]

Build the SVD basis cache of a base model: one matrix at a time, resumable; what is there and intact is kept.
fit does this by itself; run it beforehand for large models.

  --base BASE             tiny, a folder, or a Hub id
  --target_modules SET    which matrices (default mlp)
  --layers A,B,C          only these layers
  --cache_dir DIR         where (default $TRANSFORMER2_CACHE or ~/.cache/transformer2, basis/ below it)
  --dtype DTYPE           load weights in this dtype (default: as stored)
"""

EXPERTS_HELP = """\
usage: transformer2 experts show DIR [DIR ...]
       transformer2 experts mix DIR DIR ... --weights W W ... --out DIR [--mix delta|normalised|raw]

  show    what an expert is: base, task, step, score, how far z moved and where; several are compared
  mix     write one expert from several: delta z' = 1 + sum w (z - 1); normalised divides w by its sum; raw z' = sum w z
"""


def decompose(args: Sequence[str]) -> int:
    """Build the basis cache of a base model."""
    flags = parse_flags(args, ("base", "target_modules", "layers", "cache_dir", "dtype"), ("help", "quiet"), ())
    if "help" in flags.switches:
        print(DECOMPOSE_HELP, end="")
        return 0
    options = flags.options
    if "base" not in options:
        raise ConfigError("decompose needs --base (tiny, a folder, or a Hub id)")

    from transformer2.svf.decompose import decompose as run

    report = run(
        options["base"],
        target_modules=options.get("target_modules", "mlp"),
        layers_to_transform=_integers("layers", options["layers"]) if "layers" in options else None,
        cache_dir=options.get("cache_dir"),
        dtype=options.get("dtype"),
        progress="quiet" not in flags.switches,
    )
    print(report)
    return 0


def experts(args: Sequence[str]) -> int:
    """Show or mix expert folders."""
    verb, rest = (args[0], list(args[1:])) if args else ("--help", [])
    if verb in ("-h", "--help") or "--help" in rest:
        print(EXPERTS_HELP, end="")
        return 0
    words = list(_until_flag(rest))
    if verb == "show":
        return _show(words, rest[len(words) :])
    if verb == "mix":
        return _mix(words, rest[len(words) :])
    raise ConfigError(f"unknown verb {verb!r}; use `experts show` or `experts mix`")


def _until_flag(words: Sequence[str]) -> Sequence[str]:
    flag = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    return words[:flag]


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as e:
        raise ConfigError(f"--{name} takes numbers separated by commas, not {text!r}") from e
