"""`decompose`, `export`, `experts` and `report`: commands that need no Trainer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from transformer2.arguments import written
from transformer2.cli.check import check, is_folder
from transformer2.cli.compose import PACKAGED, compose, home, parse_flags
from transformer2.cli.folder import refuse_unwritable
from transformer2.cli.schema import value_of
from transformer2.cli.train import KEYS, quieten, take_from_expert
from transformer2.errors import ConfigError, shown

DECOMPOSE_HELP = """\
usage: transformer2 decompose --base BASE | --config FILE [--target_modules mlp|attention|all-linear|REGEX]

Build the SVD basis cache of a base model: one matrix at a time, resumable; what is there and intact is kept.
fit does this by itself; run it beforehand for large models. Processes share the work:
  torchrun --nproc_per_node 8 -m transformer2 decompose --base BASE

  --base BASE             tiny, a folder, or a Hub id
  --config FILE           what fit will be given: its base, matrices, dtype and files are taken
  --target_modules SET    which matrices (default: what the shipped configs tune of this base, else mlp)
  --layers A,B,C          only these layers
  --cache_dir DIR         where (default $TRANSFORMER2_CACHE or ~/.cache/transformer2, basis/ below it)
  --dtype DTYPE           load weights in this dtype (default: as stored); train in the same one
  --device DEVICE         where to compute (default: the GPU where there is one)
  --model.KEY VALUE       as for fit, e.g. --model.model_kwargs '{revision: v1}'
"""

EXPORT_HELP = """\
usage: transformer2 export --expert DIR --out DIR [--base BASE] [--dtype DTYPE]

Write base and expert as one plain model folder: weights with z composed into them, config, tokenizer, chat template.
What reads model folders reads it, e.g.
  lm_eval --model hf --model_args pretrained=DIR --tasks gsm8k --apply_chat_template

  --expert DIR            an expert folder, of SVF or any of PEFT's methods that merge
  --out DIR               a new or empty folder
  --base BASE             tiny, a folder, or a Hub id (default: the expert's own)
  --dtype DTYPE           dtype of the weights (default: as stored)
  --model.KEY VALUE       as for fit, e.g. --model.model_kwargs '{revision: v1}'
"""

EXPERTS_HELP = """\
usage: transformer2 experts show DIR [DIR ...]
       transformer2 experts mix DIR DIR ... --weights W W ... --out DIR [--mix delta|normalised|raw]
       transformer2 experts stamp DIR [DIR ...]

  show    what an expert is: base, task, step, score, how far z moved and where; several are compared
  mix     write one expert from several: delta z' = 1 + sum w (z - 1); normalised divides w by its sum; raw z' = sum w z
  stamp   accept an expert as it is: its checksums are written anew, after its adapter_config.json was edited on purpose
"""

REPORT_HELP = """\
usage: transformer2 report RUN_DIR [RUN_DIR ...] [--out FILE.png]

Print the table of a finished run again and, after fit, draw its learning curve (figures/curve.png in the run folder).
"""


def decompose(args: Sequence[str]) -> int:
    """Build the basis cache of a base model."""
    options = ("base", "target_modules", "layers", "cache_dir", "dtype", "device")
    flags = parse_flags(args, options, ("help", "quiet"), KEYS)
    if "help" in flags.switches:
        print(DECOMPOSE_HELP, end="")
        return 0
    given = flags.options
    _refuse_unknown(given)
    layers = _integers("layers", given["layers"]) if "layers" in given else None
    config = compose(flags.configs, flags.overrides, KEYS)
    if "base" in given:
        config["model"] = {**_mapping(config), "base": given["base"]}
    check(config, "decompose")
    model = config["model"]
    base = model.get("base")
    if base is None:
        raise ConfigError("decompose needs --base (tiny, a folder, or a Hub id), or a --config that names one")
    adapter = model.get("adapter") or ({} if "target_modules" in given else _shipped_adapter(base))
    if (kind := str(adapter.get("peft_type", "SVF")).upper()) != "SVF":
        raise ConfigError(f"the config trains a {kind} adapter, which needs no bases; decompose is for SVF")
    cache_dir = given.get("cache_dir", adapter.get("basis_cache"))
    dtype = given.get("dtype", model.get("dtype", "auto"))
    if cache_dir not in (None, "off"):
        refuse_unwritable(cache_dir, "--cache_dir")

    from transformer2.svf.decompose import decompose as run

    report = run(
        base,
        target_modules=given.get("target_modules", adapter.get("target_modules", "mlp")),
        layers_to_transform=adapter.get("layers_to_transform") if layers is None else layers,
        exclude_modules=adapter.get("exclude_modules"),
        cache_dir=None if cache_dir == "off" else cache_dir,
        dtype=None if dtype == "auto" else dtype,
        device=given.get("device"),
        progress="quiet" not in flags.switches,
        model_kwargs=model.get("model_kwargs"),
    )
    done = f"{report['built']} built, {report['reused']} reused, {report['quarantined']} damaged and rebuilt"
    print(f"{report['matrices']} matrices ({done}), {report['bytes'] / 1e6:.1f} MB, {report['seconds']:.1f} s")
    print(f"kept in {report['folder']}")
    return 0


def _shipped_adapter(base: str) -> dict[str, Any]:
    """What the shipped configs train on this base; nothing where there is none for it."""
    for path in sorted((PACKAGED / "conf").glob("*.yaml")):
        model = compose([str(path)], [], [*KEYS, "adapt", "strategy"]).get("model") or {}
        if model.get("base") == base:
            return dict(model.get("adapter") or {})
    return {}


def export(args: Sequence[str]) -> int:
    """Write base and expert as one plain model folder."""
    flags = parse_flags(args, ("expert", "out", "base", "dtype"), ("help", "quiet"), KEYS)
    if "help" in flags.switches:
        print(EXPORT_HELP, end="")
        return 0
    given = flags.options
    if "expert" not in given or "out" not in given:
        raise ConfigError("export needs --expert DIR (an expert folder) and --out DIR (a new folder)")
    _refuse_unknown(given)
    config = compose(flags.configs, flags.overrides, KEYS)
    expert, out = Path(given["expert"]).expanduser(), Path(given["out"]).expanduser()
    if "base" in given:
        config["model"] = {**_mapping(config), "base": given["base"]}
    check(config, "export")
    data = config.get("data")
    take_from_expert(config, expert, scored=True)
    config["data"] = data  # which rows it was trained on makes no difference here
    check(config, "export")
    model = config["model"]
    if model.get("base") is None:
        raise ConfigError(f"{expert} does not say which base it belongs to; give --base")
    quieten("quiet" in flags.switches)

    from transformer2.export import export_merged, new_folder
    from transformer2.policy import build_policy, expert_adapter, load_base, load_expert, load_tokenizer

    new_folder(out)
    options = model.get("model_kwargs") or {}
    tokenizer = load_tokenizer(model["base"], options)
    base = load_base(model["base"], given.get("dtype", model.get("dtype", "auto")), **options)
    policy = build_policy(base, expert_adapter(expert, model.get("adapter") or {}, base))
    policy.peft_config["default"].base_model_name_or_path = model["base"]
    load_expert(policy, expert)
    print(f"{export_merged(policy, tokenizer, out)}: {model['base']} with {expert} merged into it")
    return 0


def _mapping(config: dict[str, Any]) -> dict[str, Any]:
    """`model` of a composed config that has not been checked yet."""
    if not isinstance(model := config.get("model") or {}, dict):
        raise ConfigError(f"model must hold keys and values, not {written(model)}")
    return model


def _refuse_unknown(options: dict[str, str]) -> None:
    """Values of flags that torch would fail on, after everything was imported."""
    dtypes = get_args(value_of("transformer2.policy.DType"))
    if (dtype := options.get("dtype", "auto")) not in dtypes:
        raise ConfigError(f"--dtype must be one of {', '.join(dtypes)}, not {written(dtype)}")
    if not re.fullmatch(r"(cpu|mps|cuda(:\d+)?)", device := options.get("device", "cpu")):
        raise ConfigError(f"--device must be cpu, cuda, cuda:N or mps, not {written(device)}")


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
    if verb == "stamp":
        return _stamp(words, rest[len(words) :])
    raise ConfigError(f"unknown verb {verb!r}; use `experts show`, `experts mix` or `experts stamp`")


def _show(folders: Sequence[str], flags: Sequence[str]) -> int:
    parse_flags(flags, (), (), ())
    if not folders:
        raise ConfigError("experts show needs an expert folder, such as runs/tiny_math/expert")

    _refuse_no_folders(folders)
    from transformer2.experts import compare_experts, load_experts, show_expert

    print("\n\n".join(show_expert(folder) for folder in folders))
    if len(folders) > 1:
        print(f"\n{compare_experts(load_experts(folders))}")
    return 0


def _stamp(folders: Sequence[str], flags: Sequence[str]) -> int:
    parse_flags(flags, (), (), ())
    if not folders:
        raise ConfigError("experts stamp needs an expert folder, such as runs/tiny_math/expert")

    _refuse_no_folders(folders)
    from transformer2.experts import stamp_expert

    for folder in folders:
        print(f"{shown(str(stamp_expert(folder)))}: checksums written")
    return 0


def _mix(folders: Sequence[str], args: Sequence[str]) -> int:
    weights, rest = _take_list(args, "weights")
    options = parse_flags(rest, ("out", "mix"), (), ()).options
    if not folders or "out" not in options or not weights:
        raise ConfigError("experts mix needs expert folders, --weights W ... (one each) and --out DIR")

    mix = options.get("mix", "delta")
    if mix not in ("delta", "normalised", "raw"):
        raise ConfigError(f"--mix {mix!r} is not one of delta, normalised, raw")
    numbers = _floats("weights", weights)
    if len(numbers) != len(folders):
        raise ConfigError(f"--weights has {len(numbers)} numbers for {len(folders)} experts; give one each")
    _refuse_no_folders(folders)

    from transformer2.experts import mix_folders

    print(mix_folders(folders, numbers, options["out"], mix))  # type: ignore[arg-type]  # checked above
    return 0


def _refuse_no_folders(folders: Sequence[str]) -> None:
    for folder in folders:
        if not is_folder(folder):
            raise ConfigError(f"{shown(folder)} is no folder here; give an expert's, such as runs/tiny_math/expert")


def _take_list(args: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The words after `--name`, up to the next flag (a negative number is no flag), and everything else."""
    if any(word.startswith(f"--{name}=") for word in args):
        raise ConfigError(f"--{name}=... takes one word alone; write --{name} W W ..., with a space")
    if list(args).count(f"--{name}") > 1:
        raise ConfigError(f"--{name} is given twice; give it once, with all of its numbers")
    if f"--{name}" not in args:
        return [], list(args)
    start = args.index(f"--{name}") + 1
    end = next((i for i in range(start, len(args)) if args[i].startswith("--")), len(args))
    return list(args[start:end]), [*args[: start - 1], *args[end:]]


def _floats(name: str, words: Sequence[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError as e:
        raise ConfigError(f"--{name} takes numbers, not {shown(' '.join(words), 60)!r}") from e
    if not all(abs(number) <= 100 for number in numbers):  # nan is not
        raise ConfigError(f"--{name} takes numbers from -100 to 100, not {shown(' '.join(words), 60)!r}")
    return numbers


def _until_flag(words: Sequence[str]) -> Sequence[str]:
    flag = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    if not all(word.strip() for word in words[:flag]):
        raise ConfigError("a folder's name is empty; give one")
    return home(list(words[:flag]))


def _integers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise ConfigError(f"--{name} takes numbers of at least 0 separated by commas, not {written(text)}")
    return numbers


def report(args: Sequence[str]) -> int:
    """Print a run's table again and draw its learning curve."""
    if not args or "--help" in args or "-h" in args:
        print(REPORT_HELP, end="")
        return 0
    runs = list(_until_flag(args))
    if not runs:
        raise ConfigError("report needs a run folder, such as runs/tiny_math")
    out = parse_flags(args[len(runs) :], ("out",), (), ()).options.get("out")

    for name in runs:
        if not is_folder(name):
            raise ConfigError(f"{shown(name)}: no such folder; give a run's, such as runs/tiny_math")

    from transformer2.report.adaptation import table_of_run
    from transformer2.report.curve import draw_curve
    from transformer2.report.table import read_report, text_table

    for run in map(Path, runs):
        if tables := table_of_run(run):
            print(tables)
            continue
        table = text_table(read_report(run)) if (run / "report.json").exists() else None
        picture = draw_curve(run, Path(out) if out else run / "figures" / "curve.png")
        if table is not None:
            print(table)
        print(f"  curve in {picture}")
    return 0
