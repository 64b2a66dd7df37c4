"""Train the experts that ship with the embedded model: `python -m transformer2.tiny.train_experts --out DIR`.

Each is what `transformer2 fit --config conf/tiny_<name>.yaml` keeps under AdamW; EXPERTS.json says on which weights
they were trained, how, and how they scored. With `--vision` those of the embedded vision model, text experts among
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer2.errors import ConfigError, UserError
from transformer2.files import fresh_folder, write_text
from transformer2.tiny import CLASSIFIER, EXPERTS, VISION_EXPERTS, model_path, vision_model_path

NAMES = (*EXPERTS, CLASSIFIER)
# The experts that ship are AdamW's, at these rates; conf/tiny.yaml descends the natural gradient since.
RATES = {"math": "1.5e-2", "code": "2.5e-3", "reasoning": "2e-2", "dispatch": "1e-2", "textvqa": "1.5e-2"}
STEPS = {"code": "100"}


def weights_hash(vision: bool = False) -> str:
    """sha256 of the weights of the embedded model, or of the embedded vision model."""
    folder = vision_model_path() if vision else model_path()
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def train(out: Path, names: Sequence[str], seed: int, vision: bool) -> dict[str, Any]:
    """Train and write `out/<name>/`; returns what EXPERTS.json says.

    Args:
        out: Folder of the expert folders; experts of these names in it are replaced once all are trained.
        names: Which of them.
        seed: Seed of everything.
        vision: Train on the embedded vision model.

    Raises:
        UserError: A run failed.
    """
    command = f"python -m transformer2.tiny.train_experts{' --vision' if vision else ''} --out DIR"
    facts: dict[str, Any] = {"command": command, "seed": seed, "model_sha256": weights_hash(vision), "experts": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            run = Path(scratch) / name
            flags = [
                "fit",
                "--config",
                f"conf/tiny_{name}.yaml",
                "--seed_everything",
                str(seed),
                "--run_dir",
                str(run),
                *("--optimizer", "AdamW", "--optimizer.lr", RATES[name]),
                *(("--trainer.max_steps", STEPS[name]) if name in STEPS else ()),
                *(("--model.base", "tiny_vision") if vision else ()),
            ]
            # In a process of its own: the command line lies above this package, and a fresh process has fresh seeds.
            done = subprocess.run([sys.executable, "-m", "transformer2", *flags])
            if done.returncode:
                raise UserError(f"training {name} ended with exit code {done.returncode}; see above")
            report = json.loads((run / "report.json").read_text())
            step = json.loads((run / "expert/adapter_config.json").read_text())["step"]
            scores = {key: round(report[key]["accuracy"], 4) for key in ("base", "result")}
            facts["experts"][name] = {"task": report["task"], "step": step, **scores, "n": report["n"]}
        for name in names:
            with fresh_folder(out / name) as fresh:
                shutil.copytree(Path(scratch) / name / "expert", fresh, dirs_exist_ok=True)
    write_text(out / "EXPERTS.json", json.dumps(facts, indent=2) + "\n")
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer2.tiny.train_experts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the expert folders")
    parser.add_argument("--vision", action="store_true", help="those of the embedded vision model")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default 0)")
    parser.add_argument("--force", action="store_true", help="replace experts of the same names")
    args = parser.parse_args(argv)
    try:
        known = VISION_EXPERTS if args.vision else NAMES
        names = args.only or known
        if unknown := sorted(set(names) - set(known)):
            raise ConfigError(f"--only {unknown[0]} is not among {', '.join(known)}")
        taken = [name for name in names if (args.out / name).exists()]
        if taken and not args.force:
            raise ConfigError(f"{args.out / taken[0]} exists; give another --out, or --force to replace it")
        facts = train(args.out, names, args.seed, args.vision)
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, found in facts["experts"].items():
        print(f"{name}: {100 * found['base']:.1f} -> {100 * found['result']:.1f} %, step {found['step']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
