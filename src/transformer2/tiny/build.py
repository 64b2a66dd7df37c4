"""Build the embedded model from nothing: `python -m transformer2.tiny.build --out DIR`.

Data, tokenizer and weights are a function of the seed and of this folder's sources: on one machine with one version
of torch, two builds give the same bytes. BUILD.json keeps the command, the hash of the sources, the metrics, and the
hash of every file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from transformer2.errors import ConfigError, UserError
from transformer2.tiny.pretrain import Budget, Pretraining
from transformer2.tiny.tokenizer import build_tokenizer

SOURCES = ("words.py", "habits.py", "world.py", "tokenizer.py", "init.py", "pretrain.py", "build.py")


def source_hash() -> str:
    """sha256 of the files that determine the result."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a built folder, BUILD.json aside."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "BUILD.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def build(out: Path, budget: Budget, seed: int = 0, force: bool = False, progress: bool = True) -> dict[str, object]:
    """Pre-train and write the folder; returns what BUILD.json says.

    Args:
        out: Folder to write. Nothing appears there before training is done.
        budget: Steps of the phases.
        seed: Seed of weights and text.
        force: Replace an existing folder.
        progress: Show a progress bar with the time left.

    Raises:
        ConfigError: The folder exists and `force` is not set, or a warm-up phase did not pass its gate.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; give another --out, or --force to replace it")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)  # the order of sums, and so every bit, depends on it
    torch.use_deterministic_algorithms(True)
    try:
        facts = _train_and_save(out, budget, seed, progress)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return facts


def _train_and_save(out: Path, budget: Budget, seed: int, progress: bool) -> dict[str, object]:
    tokenizer, start = build_tokenizer(), time.monotonic()
    total = budget.max_lookup_steps + budget.max_choice_steps + budget.habit_steps
    with tqdm(total=total, unit="step", disable=not progress, dynamic_ncols=True) as bar:

        def on_step(phase: str, loss: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        def on_skip(skipped: int) -> None:
            bar.total -= skipped

        run = Pretraining(tokenizer, budget, seed, on_step, on_skip)
        metrics = run.run()
    for phase in ("lookup", "choice"):
        if min(metrics[phase]["thing"], metrics[phase]["letter"]) < budget.gate:
            raise ConfigError(f"phase {phase} did not reach {budget.gate}: {metrics[phase]}; try another --seed")

    draft = out.parent / f".{out.name}.building"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    run.model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=40,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    run.model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    facts: dict[str, object] = {
        "command": f"python -m transformer2.tiny.build --out DIR --seed {seed}",
        "seed": seed,
        "budget": vars(budget),
        "source_sha256": source_hash(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokens": run.num_tokens,
        "seconds": round(time.monotonic() - start),
        "metrics": metrics,
        "files_sha256": file_hashes(draft),
    }
    (draft / "BUILD.json").write_text(json.dumps(facts, indent=2) + "\n")
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer2.tiny.build", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and text (default 0)")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)
    try:
        facts = build(args.out, Budget(), args.seed, args.force)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out} in {facts['seconds']} s: {facts['parameters']} parameters, {facts['tokens']} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
