"""`spectrum`: how the singular values of a base are spread, and how an expert's z drifts over them."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from transformer2.cli.check import check
from transformer2.cli.compose import compose, flags_of
from transformer2.cli.folder import check_writable, run_folder
from transformer2.cli.keys import KEYS
from transformer2.cli.tools import check_device, matrices
from transformer2.cli.train import silence_libraries, take_from_expert, warn_of_unread
from transformer2.cli.values import run_name
from transformer2.errors import ConfigError
from transformer2.files import write_text
from transformer2.svf.format import peft_type

HELP = """\
usage: transformer2 spectrum --model.base BASE [--expert DIR] [--model.KEY VALUE ...] [--device DEVICE] [--run_dir DIR]

How much of each weight matrix is in its largest singular values, by kind of matrix and by layer (paper, Figures 10 and
11): the share of their sum, and of the sum of their squares, in the top 1, 2, 4, ... of them, and the rank that holds
50, 90 and 99 %. With an expert: how far its z moved in each tenth of the singular values, and where the change of the
weights is. The matrices are read one at a time; neither a model nor a basis is kept in memory.

  --model.base BASE    tiny, smollm2, a folder, a GGUF file, or a Hub id; with --expert, the expert's own by default
  --expert DIR         an expert of that base
  --model.adapter.target_modules SET           mlp, attention, all-linear (default) or a regular expression
  --model.adapter.layers_to_transform '[A, B]'  only these layers
  --model.dtype DTYPE  read the weights in this dtype (default: as fit does)
  --config FILE        what fit was given: its base, matrices and dtype are taken
  --device DEVICE      where to compute: cpu, cuda, cuda:N, mps (default: the GPU where there is one)
  --run_dir DIR        where the run is kept (default runs/spectrum; a number is added rather than overwriting)
  --quiet              no progress bar

The run folder holds config.yaml, report.json and figures/. `transformer2 report RUN_DIR` prints the table again.
"""


def spectrum(args: Sequence[str]) -> int:
    """Measure the spectra of a base; write numbers and figures into a run folder."""
    flags = flags_of(args, HELP, KEYS)
    device = check_device(flags.options.get("device"))
    config = compose(flags.configs, flags.overrides, KEYS)
    expert = Path(flags.options["expert"]) if "expert" in flags.options else None
    if expert is not None:
        given = dict((config.get("model") or {}).get("adapter") or {})
        take_from_expert(config, "spectrum", expert)
        config["model"]["adapter"] = given  # the base may be looked at as a whole
    check(config, "spectrum")
    warn_of_unread("spectrum", [key for key, _ in flags.overrides], config)
    model = config["model"]
    if model.get("base") is None:
        raise ConfigError("spectrum needs --model.base (`spectrum --help`), or a --config or --expert that names one")
    adapter = {"peft_type": "SVF", "target_modules": "all-linear", **(model.get("adapter") or {})}
    if (kind := peft_type(adapter)) != "SVF":
        raise ConfigError(f"the config trains a {kind} adapter; set --model.adapter '{{peft_type: SVF}}'")
    model["adapter"] = adapter
    name = run_name(config.get("name") or "spectrum")
    check_writable(flags.options.get("run_dir") or "runs")
    silence_libraries("quiet" in flags.switches)
    with run_folder(flags.options.get("run_dir"), name) as folder:
        return _run(config, expert, folder, matrices(model, device, flags))


def _run(config: dict[str, Any], expert: Path | None, folder: Path, given: dict[str, Any]) -> int:
    from transformer2.experts import read_expert
    from transformer2.experts.spectrum import drift, matrix_facts
    from transformer2.report.figures import save_figure
    from transformer2.report.spectrum import drift_figure, layers_figure, share_figure, spectrum_table
    from transformer2.report.table import versions
    from transformer2.svf.decompose import spectra

    start = time.perf_counter()
    base = given["base"]
    loaded = None if expert is None else read_expert(expert)  # a damaged one is found before the work
    found = spectra(**given)
    if loaded is not None and (missing := sorted(loaded.deltas.keys() - set(found.names))):
        raise ConfigError(
            f"expert {loaded.name!r} tunes {missing[0]}, which is not among the {len(found.names)} matrices looked at; "
            "leave model.adapter out, or give the base that it was trained on"
        )
    sigmas = dict(found.values)
    report: dict[str, Any] = {"base_model": base, "fingerprint": found.fingerprint}
    report["spectrum"] = [matrix_facts(module, sigma_R) for module, sigma_R in sigmas.items()]
    figures = {
        "spectrum": share_figure(report["spectrum"], f"Spectra of {Path(base).name}"),
        "spectrum_by_layer": layers_figure(report["spectrum"], f"Spectra of {Path(base).name}, by layer"),
    }
    if loaded is not None:
        kinds = drift(loaded, sigmas)
        facts = {"expert": loaded.name, "task": loaded.task, "step": loaded.step, "sha256": loaded.sha256}
        report["drift"] = {**facts, "kinds": kinds}
        figures["drift"] = drift_figure(
            {loaded.name: [kinds["all"]]}, f"Drift of z over the spectra of {Path(base).name}"
        )
        if loaded.base_fingerprint not in (None, found.fingerprint):
            note = f"{loaded.name} was trained on other weights than this base, or on them in another dtype"
            warnings.warn(note, stacklevel=2)
            report["notes"] = [note]
    report |= {"seconds": {"total": round(time.perf_counter() - start, 2)}, "versions": versions()}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    print(spectrum_table(report))
    print(f"  saved to {folder}")
    return 0
