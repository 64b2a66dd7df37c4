"""Stands for `transformer2` in a study's scheduling: ends in a moment with a report like a fit's (`--launcher`).

The score is a function of the learning rate, so that a study has something to choose; the task humaneval fails, mbpp
is killed once, with a checkpoint, and arc_easy waits for a file.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path


def flag(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def main() -> None:
    folder, task = Path(flag("--run_dir")), flag("--data.task")
    root = folder.parent.parent
    with open(root / "calls.txt", "a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    if (checkpoint := flag("--ckpt_path")) and Path(checkpoint).read_text() == "damaged":
        print("transformer2: the checkpoint is damaged; take the one before it")
        sys.exit(2)
    if (root / "broken").exists() and sys.argv[1] == (root / "broken").read_text():
        sys.exit(2)
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    if task == "humaneval":
        print("a note\ntransformer2: it cannot be done; do something else")
        sys.exit(2)
    if task == "mbpp" and not flag("--ckpt_path"):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_text("half of it")
        (root / "killed").touch()
        os.kill(os.getpid(), 9)
    if task == "arc_easy":
        (root / "waiting").touch()
        while not (root / "go").exists():
            time.sleep(0.05)
    rate = float(flag("--model.optimizer.lr", "1e-2"))
    score = {"accuracy": 1 - abs(rate - 0.02), "se": 0.01, "n": 100}
    training = {"best_validation": score["accuracy"], "best_step": 1, "trainable": 7, "method": "SVF", "steps": 1}
    training |= {"seconds": 1.0, "cpu_seconds": 1.0, "curve": []}
    report = {"task": task, "protocol": "clean", "n": 100, "base": {"accuracy": 0.3, "se": 0.01, "n": 100}}
    report |= {"result": score, "paired_p": 0.01, "controls": {}, "alpha": None, "evaluations": None}
    report |= {"seconds": {"total": 1.0}, "seeds": [int(flag("--seed_everything"))], "versions": {}, "sandbox": None}
    details = {"training": training, "made_from": {}}
    experts = flag("--adapt.experts") or flag("--adapt").partition("experts: ")[2].strip("}")
    for expert in filter(None, [*experts.strip("[]").split(", "), flag("--expert")]):
        weights = (Path(expert) / "adapter_model.safetensors").read_bytes()
        named = Path(expert).parent if Path(expert).name == "expert" else Path(expert)
        details["made_from"][named.name] = hashlib.sha256(weights).hexdigest()
    if sys.argv[1] != "test":  # an expert of its own; of `adapt --strategy all`, that of cem
        own = folder / ("expert" if sys.argv[1] == "fit" else "cem/expert")
        own.mkdir(parents=True)
        (own / "adapter_model.safetensors").write_bytes(os.urandom(8))
    (folder / "report.json").write_text(json.dumps({**report, "details": details}))


main()
