"""Build the embedded vision model: `python -m transformer2.tiny.vision.build --out DIR`.

Pictures, processor and weights are a function of the seed, of the embedded text model and of the sources: on one
machine with one version of torch, two builds give the same bytes. BUILD.json keeps the command, the hash of what
determines the result, the metrics, and the hash of every file.
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
from transformer2.files import replace_folder
from transformer2.tiny import build as text_build
from transformer2.tiny import model_path
from transformer2.tiny.build import file_hashes
from transformer2.tiny.vision.measure import measure
from transformer2.tiny.vision.pretrain import Budget, Pretraining
from transformer2.tiny.vision.processor import build_processor

SOURCES = ("pictures.py", "world.py", "processor.py", "rows.py", "tower.py", "pretrain.py", "measure.py", "build.py")


def source_hash() -> str:
    """sha256 of the files that determine the result: this folder's, the text world's, and the text model's weights."""
    digest = hashlib.sha256(text_build.source_hash().encode())
    for path in [*(Path(__file__).parent / name for name in SOURCES), model_path() / "model.safetensors"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(out: Path, budget: Budget, seed: int = 0, force: bool = False, progress: bool = True) -> dict[str, object]:
    """Pre-train and write the folder; returns what BUILD.json says.

    Args:
        out: Folder to write. Nothing appears there before training is done.
        budget: Steps of the phases.
        seed: Seed of weights, pictures and text.
        force: Replace an existing folder.
        progress: Show a progress bar with the time left.

    Raises:
        ConfigError: The folder exists and `force` is not set, or a gated phase did not pass its gate.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; give another --out, or --force to replace it")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)  # the order of sums, and so every bit, depends on it
    torch.use_deterministic_algorithms(True)
    try:
        return _train_and_save(out, budget, seed, progress)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _train_and_save(out: Path, budget: Budget, seed: int, progress: bool) -> dict[str, object]:
    processor, start = build_processor(), time.monotonic()
    tokenizer = processor.tokenizer
    total = budget.max_tower_steps + budget.max_answer_steps + budget.habit_steps + budget.hole_steps
    with tqdm(total=total, unit="step", disable=not progress, dynamic_ncols=True) as bar:

        def on_step(phase: str, loss: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        def on_skip(skipped: int) -> None:
            bar.total -= skipped

        run = Pretraining(tokenizer, budget, seed, on_step, on_skip)
        metrics = run.run()

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
    run.model.config.text_config._name_or_path = ""  # a folder of this machine
    run.model.save_pretrained(draft)
    processor.save_pretrained(draft)
    facts: dict[str, object] = {
        "command": f"python -m transformer2.tiny.vision.build --out DIR --seed {seed}",
        "seed": seed,
        "budget": vars(budget),
        "source_sha256": source_hash(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokens": run.num_tokens,
        "seconds": round(time.monotonic() - start),
        "metrics": metrics,
        "accuracy": measure(run.model, processor, budget.test_rows),
        "files_sha256": file_hashes(draft),
    }
    (draft / "BUILD.json").write_text(json.dumps(facts, indent=2) + "\n")
    replace_folder(draft, out)
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer2.tiny.vision.build", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pictures and text (default 0)")
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
