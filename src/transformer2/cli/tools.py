"""`decompose` and `experts`: commands that need no Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformer2.cli.compose import parse_flags
from transformer2.errors import ConfigError

DECOMPOSE_HELP = """\
usage: transformer2 decompose --base BASE [--target_modules mlp|attention|all-linear|REGEX] [--cache_dir DIR]

Build the SVD basis cache of a base model: one matrix at a time, resumable; what is there and intact is kept.
fit does this by itself; run it beforehand for large models. Processes share the work:
  torchrun --nproc_per_node 8 -m transformer2 decompose --base BASE

  --base BASE             tiny, a folder, or a Hub id
  --target_modules SET    which matrices (default mlp)
  --layers A,B,C          only these layers
  --cache_dir DIR         where (default $TRANSFORMER2_CACHE or ~/.cache/transformer2, basis/ below it)
  --dtype DTYPE           load weights in this dtype (default: as stored); train in the same one
  --device DEVICE         where to compute (default: the GPU where there is one)
"""

EXPERTS_HELP = """\
usage: transformer2 experts show DIR [DIR ...]
       transformer2 experts mix DIR DIR ... --weights W W ... --out DIR [--mix delta|normalised|raw]

  show    what an expert is: base, task, step, score, how far z moved and where; several are compared
  mix     write one expert from several: delta z' = 1 + sum w (z - 1); normalised divides w by its sum; raw z' = sum w z
"""

REPORT_HELP = """\
usage: transformer2 report RUN_DIR [RUN_DIR ...] [--out FILE.png]

Print the table of a finished run again and, after fit, draw its learning curve (figures/curve.png in the run folder).
"""


def decompose(args: Sequence[str]) -> int:
    """Build the basis cache of a base model."""
    flags = parse_flags(
        args, ("base", "target_modules", "layers", "cache_dir", "dtype", "device"), ("help", "quiet"), ()
    )
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
        device=options.get("device"),
        progress="quiet" not in flags.switches,
    )
    done = f"{report['built']} built, {report['reused']} reused, {report['quarantined']} damaged and rebuilt"
    print(f"{report['matrices']} matrices ({done}), {report['bytes'] / 1e6:.1f} MB, {report['seconds']:.1f} s")
    print(f"kept in {report['folder']}")
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


def _show(folders: Sequence[str], flags: Sequence[str]) -> int:
    parse_flags(flags, (), (), ())
    if not folders:
        raise ConfigError("experts show needs an expert folder, such as runs/tiny_math/expert")

    from transformer2.experts import compare_experts, load_experts, show_expert

    print("\n\n".join(show_expert(folder) for folder in folders))
    if len(folders) > 1:
        print(f"\n{compare_experts(load_experts(folders))}")
    return 0


def _mix(folders: Sequence[str], args: Sequence[str]) -> int:
    weights, rest = _take_list(args, "weights")
    options = parse_flags(rest, ("out", "mix"), (), ()).options
    if not folders or "out" not in options or not weights:
        raise ConfigError("experts mix needs expert folders, --weights W ... (one each) and --out DIR")

    from transformer2.experts import mix_folders

    mix = options.get("mix", "delta")
    if mix not in ("delta", "normalised", "raw"):
        raise ConfigError(f"--mix {mix!r} is not one of delta, normalised, raw")
    print(mix_folders(folders, _floats("weights", weights), options["out"], mix))  # type: ignore[arg-type]  # checked above
    return 0


def _take_list(args: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The words after `--name`, up to the next flag (a negative number is no flag), and everything else."""
    if f"--{name}" not in args:
        return [], list(args)
    start = args.index(f"--{name}") + 1
    end = next((i for i in range(start, len(args)) if args[i].startswith("--")), len(args))
    return list(args[start:end]), [*args[: start - 1], *args[end:]]


def _floats(name: str, words: Sequence[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as e:
        raise ConfigError(f"--{name} takes numbers, not {' '.join(words)!r}") from e


def _until_flag(words: Sequence[str]) -> Sequence[str]:
    flag = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    return words[:flag]


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as e:
        raise ConfigError(f"--{name} takes numbers separated by commas, not {text!r}") from e


def report(args: Sequence[str]) -> int:
    """Print a run's table again and draw its learning curve."""
    if not args or "--help" in args or "-h" in args:
        print(REPORT_HELP, end="")
        return 0
    runs = list(_until_flag(args))
    out = parse_flags(args[len(runs) :], ("out",), (), ()).options.get("out")

    from transformer2.report.adaptation import table_of_run
    from transformer2.report.curve import draw_curve
    from transformer2.report.table import read_report, text_table

    for run in map(Path, runs):
        if tables := table_of_run(run):
            print(tables)
            continue
        picture = draw_curve(run, Path(out) if out else run / "figures" / "curve.png")
        if (run / "report.json").exists():
            print(text_table(read_report(run)))
        print(f"  curve in {picture}")
    return 0
