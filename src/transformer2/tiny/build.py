"""Build the embedded models from nothing: `python -m transformer2.tiny.build --out DIR`.

Data, tokenizer and weights are a function of the seed and of this folder's sources: on one machine with one version
of torch, two builds give the same bytes. BUILD.json keeps the command, the hash of the sources, the metrics, and the
hash of every file. `vision/build.py` builds the vision model, on top of the text model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from transformer2.errors import ConfigError, UserError
from transformer2.files import replace_folder
from transformer2.tiny.pretrain import Budget, Pretraining, TextPretraining


def sha256(*paths: Path) -> str:
    """Of the content of files, one behind the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a built folder, BUILD.json aside."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "BUILD.json")
    return {path.name: sha256(path) for path in paths}


@dataclass(frozen=True)
class Recipe:
    """How an embedded model is built.

    Attributes:
        module: Its command.
        pretraining: One run of its pre-training, from a budget, a seed, and whether to show a progress bar.
        budget: Of the shipped model.
        sources: Files that determine the result.
    """

    module: str
    pretraining: Callable[[Any, int, bool], Pretraining]
    budget: Any
    sources: tuple[Path, ...]

    def source_hash(self) -> str:
        """sha256 of the files that determine the result."""
        return sha256(*self.sources)

    def build(
        self, out: Path, budget: Any = None, seed: int = 0, force: bool = False, progress: bool = True
    ) -> dict[str, Any]:
        """Pre-train and write the folder; returns what BUILD.json says.

        Args:
            out: Folder to write. Nothing appears there before training is done.
            budget: Steps of the phases; None takes those of the shipped model.
            seed: Seed of weights and data.
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
            return self._train_and_save(out, budget or self.budget, seed, progress)
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)

    def _train_and_save(self, out: Path, budget: Any, seed: int, progress: bool) -> dict[str, Any]:
        start, run = time.monotonic(), self.pretraining(budget, seed, progress)
        with run.bar:
            metrics = run.run()
        draft = out.parent / f".{out.name}.building"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        run.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=40,
            bos_token_id=run.tokenizer.bos_token_id,
            eos_token_id=run.tokenizer.eos_token_id,
            pad_token_id=run.tokenizer.pad_token_id,
        )
        run.model.save_pretrained(draft)
        run.processor.save_pretrained(draft)
        facts = {
            "command": f"python -m {self.module} --out DIR --seed {seed}",
            "seed": seed,
            "budget": vars(budget),
            "source_sha256": self.source_hash(),
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "tokens": run.num_tokens,
            "seconds": round(time.monotonic() - start),
            "metrics": metrics,
            **run.measured(),
            "files_sha256": file_hashes(draft),
        }
        (draft / "BUILD.json").write_text(json.dumps(facts, indent=2) + "\n")
        replace_folder(draft, out)
        return facts

    def main(self, argv: Sequence[str] | None = None) -> int:
        """The command line; returns the exit code."""
        command = f"python -m {self.module}"
        parser = argparse.ArgumentParser(prog=command, description=f"Build an embedded model: `{command} --out DIR`.")
        parser.add_argument("--out", type=Path, required=True, help="folder to write")
        parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default 0)")
        parser.add_argument("--force", action="store_true", help="replace an existing folder")
        args = parser.parse_args(argv)
        try:
            facts = self.build(args.out, seed=args.seed, force=args.force)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"wrote {args.out} in {facts['seconds']} s: {facts['parameters']} parameters, {facts['tokens']} tokens")
        return 0


_SOURCES = ("words.py", "habits.py", "world.py", "tokenizer.py", "init.py", "pretrain.py", "build.py")
TEXT = Recipe(
    module="transformer2.tiny.build",
    pretraining=TextPretraining,
    budget=Budget(),
    sources=tuple(Path(__file__).parent / name for name in _SOURCES),
)

if __name__ == "__main__":
    sys.exit(TEXT.main())
