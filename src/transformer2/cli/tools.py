"""`decompose`, `experts` and `report`: commands that need no Trainer."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from transformer2.arguments import LARGEST_SEED, check_weights, written
from transformer2.cli.check import check
from transformer2.cli.compose import PACKAGED, Flags, compose, flags_of, home
from transformer2.cli.folder import check_writable
from transformer2.cli.keys import ADAPT_KEYS, KEYS
from transformer2.cli.schema import value_of
from transformer2.cli.train import warn_of_unread
from transformer2.cli.values import number
from transformer2.errors import ConfigError, DataError, UserError, shown
from transformer2.files import check_directory
from transformer2.svf.format import peft_type

DECOMPOSE_HELP = """\
usage: transformer2 decompose --model.base BASE | --config FILE [--model.KEY VALUE ...] [--device DEVICE]

Build the SVD basis cache of a base model: one matrix at a time, resumable; what is there and intact is kept.
fit does this by itself; run it beforehand for large models. Processes share the work:
  torchrun --nproc_per_node 8 -m transformer2 decompose --model.base BASE

  --config FILE           what fit will be given: its base, matrices, dtype and files are taken
  --model.base BASE       tiny, smollm2, a folder, a GGUF file, or a Hub id
  --model.adapter.target_modules SET       mlp, attention, all-linear or a regular expression (without a config: what
                                           the shipped ones tune of this base, else mlp)
  --model.adapter.layers_to_transform '[A, B]'  only these layers
  --model.adapter.basis_cache DIR          where (default $TRANSFORMER2_CACHE or ~/.cache/transformer2, basis/ below it)
  --model.dtype DTYPE     load weights in this dtype (default: as stored); train in the same one
  --model.KEY VALUE       any other key that says which files, e.g. --model.model_kwargs '{revision: v1}'
  --device DEVICE         where to compute: cpu, cuda, cuda:N, mps (default: the GPU where there is one)
  --quiet                 no progress bar
"""

EXPERTS_HELP = """\
usage: transformer2 experts show DIR [DIR ...]
       transformer2 experts mix DIR DIR ... --weights W W ... --out DIR [--mix delta|normalised|raw]
       transformer2 experts shuffle DIR --out DIR [--seed N]
       transformer2 experts stamp DIR [DIR ...]

  show    what an expert is: base, task, step, score, and how far z moved (root mean square of z - 1, by kind of matrix
          and by thirds of the singular values, the largest first); several are compared. By tenths, and how much of the
          change of the weights is where: transformer2 spectrum --expert DIR
  mix     write one expert from several: delta z' = 1 + sum w (z - 1); normalised divides w by its sum; raw z' = sum w z
  shuffle write a control: the same values of z in another order within each matrix (seed 0 by default); to score one
          without keeping it: transformer2 test --expert DIR --shuffle_expert N
  stamp   accept an expert as it is: its checksums are rewritten, after its adapter_config.json was edited on purpose
"""

REPORT_HELP = """\
usage: transformer2 report RUN_DIR [RUN_DIR ...] [--out FILE.png]

Print the table of a finished run again and, after fit, draw its learning curve (figures/curve.png in the run folder, or
FILE.png for one run). Of a run without a table, as of validate, the last validation is printed.
"""


def decompose(args: Sequence[str]) -> int:
    """Build the basis cache of a base model."""
    flags = flags_of(args, DECOMPOSE_HELP, KEYS)
    device = check_device(flags.options.get("device"))
    config = compose(flags.configs, flags.overrides, KEYS)
    check(config, "decompose")
    warn_of_unread("decompose", [key for key, _ in flags.overrides], config)
    model = config["model"]
    base, adapter = model.get("base"), model.get("adapter") or {}
    if base is None:
        raise ConfigError("decompose needs --model.base (`decompose --help`), or a --config that names one")
    if not flags.configs and "target_modules" not in adapter:
        adapter = _shipped_adapter(base) | adapter
    if (kind := peft_type(adapter)) != "SVF":
        raise ConfigError(f"the config trains a {kind} adapter, which needs no bases; decompose is for SVF")
    cache_dir = None if adapter.get("basis_cache") == "off" else adapter.get("basis_cache")
    if cache_dir is not None:
        check_writable(cache_dir, "model.adapter.basis_cache")

    from transformer2.svf.decompose import decompose as run

    report = run(**matrices({**model, "adapter": adapter}, device, flags), cache_dir=cache_dir)
    done = f"{report['built']} built, {report['reused']} reused, {report['quarantined']} damaged and rebuilt"
    print(f"{report['matrices']} matrices ({done}), {report['bytes'] / 1e6:.1f} MB, {report['seconds']:.1f} s")
    print(f"saved to {report['folder']}")
    return 0


def matrices(model: Mapping[str, Any], device: str | None, flags: Flags) -> dict[str, Any]:
    """Which matrices of a config's `model`, and where they are decomposed: arguments of `decompose` and `spectra`."""
    adapter, dtype = model["adapter"], model.get("dtype", "auto")
    return {
        "base": str(model["base"]),
        "target_modules": adapter.get("target_modules", "mlp"),
        "layers_to_transform": adapter.get("layers_to_transform"),
        "exclude_modules": adapter.get("exclude_modules"),
        "dtype": None if dtype == "auto" else dtype,
        "device": device,
        "progress": "quiet" not in flags.switches,
        "model_kwargs": model.get("model_kwargs"),
    }


def check_device(device: str | None) -> str | None:
    """The value of `--device`; None where there is none.

    Raises:
        ConfigError: It names no device.
    """
    if not re.fullmatch(r"(cpu|mps|cuda(:\d+)?)", device or "cpu"):
        raise ConfigError(f"--device must be cpu, cuda, cuda:N or mps, not {written(device)}")
    return device


def _shipped_adapter(base: str) -> dict[str, Any]:
    """What the shipped configs train on this base; nothing where there is none for it."""
    for path in sorted((PACKAGED / "conf").glob("*.yaml")):
        model = compose([str(path)], [], ADAPT_KEYS).get("model") or {}
        if model.get("base") == base:
            return dict(model.get("adapter") or {})
    return {}


class _Words(argparse.ArgumentParser):
    """Folders and flags of a command without config keys; a mistake is one line."""

    def __init__(self, usage: str, what: str = "an expert's, such as runs/tiny_math/expert") -> None:
        self.what = what
        super().__init__(usage=usage, add_help=False, allow_abbrev=False)
        self.add_argument("folders", nargs="+", type=home)

    def folders_and_flags(self, args: Sequence[str]) -> argparse.Namespace:
        """What was given, once every folder is known to be there."""
        for flag in {word.partition("=")[0] for word in args if word.startswith("--")}:
            if sum(word.partition("=")[0] == flag for word in args) > 1:
                raise ConfigError(f"{flag} is given twice; give it once")
        given = self.parse_args(args)
        for folder in given.folders:
            check_directory(folder, "folder", f"give {self.what}", ConfigError)
        return given

    def error(self, message: str) -> NoReturn:
        """One line for argparse's usage and exit."""
        raise ConfigError(f"{shown(message, 120)}; write transformer2 {self.usage}")


def experts(args: Sequence[str]) -> int:
    """Show, mix, shuffle or stamp expert folders."""
    if not args or {"-h", "--help"} & set(args):
        print(EXPERTS_HELP, end="")
        return 0
    verb, *rest = args
    if verb == "mix":
        return _mix(rest)
    if verb == "shuffle":
        return _shuffle(rest)
    if verb not in ("show", "stamp"):
        raise ConfigError(f"unknown verb {verb!r}; use `experts show`, `mix`, `shuffle` or `stamp`")
    folders = _Words(f"experts {verb} DIR ...").folders_and_flags(rest).folders

    from transformer2.experts import compare_experts, load_experts, show_expert, stamp_expert

    if verb == "stamp":
        for folder in folders:
            print(f"{shown(str(stamp_expert(folder)))}: checksums written")
        return 0
    print("\n\n".join(show_expert(folder) for folder in folders))
    if len(folders) > 1:
        print(f"\n{compare_experts(load_experts(folders))}")
    return 0


def _mix(args: Sequence[str]) -> int:
    words = _Words("experts mix DIR DIR ... --weights W W ... --out DIR")
    words.add_argument("--weights", nargs="+", type=float, required=True)
    words.add_argument("--out", type=home, required=True)
    words.add_argument("--mix", choices=get_args(value_of("transformer2.svf.mixing.Mix")), default="delta")
    given = words.folders_and_flags(args)
    check_weights(given.weights, len(given.folders), given.mix)

    from transformer2.experts import mix_folders

    print(mix_folders(given.folders, given.weights, given.out, given.mix))
    return 0


def _shuffle(args: Sequence[str]) -> int:
    words = _Words("experts shuffle DIR --out DIR [--seed N]")
    words.add_argument("--out", type=home, required=True)
    words.add_argument("--seed", default="0")
    given = words.folders_and_flags(args)
    seed = number(vars(given), "seed", 0, 0, LARGEST_SEED)
    if len(given.folders) > 1:
        raise ConfigError(f"experts shuffle takes one folder, not {len(given.folders)}; call it for each")
    check_writable(given.out, "--out")

    from transformer2.experts import shuffle_folder

    folder = shuffle_folder(given.folders[0], given.out, seed)
    print(f"{folder}: z of {given.folders[0]} in another order within each matrix, seed {seed}; a control")
    return 0


def report(args: Sequence[str]) -> int:
    """Print a run's table again and draw its learning curve."""
    if not args or {"-h", "--help"} & set(args):
        print(REPORT_HELP, end="")
        return 0
    words = _Words("report RUN_DIR ... [--out FILE.png]", "a run's")
    words.add_argument("--out", type=home)
    given = words.folders_and_flags(args)
    if given.out:
        from matplotlib.backend_bases import FigureCanvasBase

        if len(given.folders) > 1:
            raise ConfigError(f"--out is one picture, and there are {len(given.folders)} runs; call report for each")
        if Path(given.out).suffix[1:] not in FigureCanvasBase.filetypes:
            raise ConfigError(f"--out must end in .png (or .pdf, .svg), not {shown(repr(given.out))}")
        check_writable(Path(given.out).parent, "--out")

    from transformer2.report.adaptation import table_of_run
    from transformer2.report.curve import draw_curve, last_validation
    from transformer2.report.table import read_report, text_table

    for run in map(Path, given.folders):
        try:
            tables = table_of_run(run)
            table = text_table(read_report(run)) if not tables and (run / "report.json").exists() else None
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:  # whatever a field holds
            raise DataError(f"the report of {run} is damaged ({type(e).__name__}: {e}); run the command again") from e
        if tables and given.out:
            raise ConfigError(f"{run} is no run of fit, test or validate, and has no curve; leave --out out")
        if tables:
            print(tables)
            continue
        picture = draw_curve(run, Path(given.out) if given.out else run / "figures" / "curve.png")
        print(last_validation(run) if table is None else table)
        print(f"  curve in {picture}")
    return 0
