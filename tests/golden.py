"""The golden reward curve: eight steps of conf/tiny_math.yaml under AdamW, bit for bit.

    python tests/golden.py             run twice in fresh processes: both equal, and equal to the committed curve
    python tests/golden.py --update    write the committed curve again

Floating-point sums depend on the processor and on torch's build, so the committed curve names both. On the machine it
names it must be met bit for bit; elsewhere the two runs must still equal each other, and the rewards must be near.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CURVE = HERE / "golden_curves" / "tiny_math.json"
STEPS = 8
NEAR = 0.25  # another machine may sample another token here and there: 64 rollouts have a standard error of 0.12


def measure() -> dict:
    """One run: the rewards and losses of its steps as exact hexadecimal floats."""
    import torch

    from transformer2.cli import main
    from transformer2.report.curve import read_scalars

    torch.set_num_threads(1)  # the order of a sum depends on it
    with tempfile.TemporaryDirectory() as scratch:
        adamw = ["--optimizer", "AdamW", "--optimizer.lr", "1.5e-2", "--optimizer.weight_decay", "0"]
        flags = ["--trainer.max_steps", str(STEPS), "--data.test_limit", "8", "--data.validation_limit", "8", "--quiet"]
        assert main(["fit", "--config", "conf/tiny_math.yaml", "--run_dir", f"{scratch}/run", *adamw, *flags]) == 0
        scalars = read_scalars(Path(scratch) / "run", ("train/reward", "train/loss"))
    return {tag: [value.hex() for _, value in series] for tag, series in scalars.items()}


def machine() -> dict:
    """What a bit-for-bit match depends on."""
    import torch

    return {"processor": _processor(), "cpu": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def _processor() -> str:
    """Name, family, model, stepping and instruction set: two machines of one name can round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    named = [facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    flags = facts.get("flags") or facts.get("Features", "")
    return " ".join([*named, hashlib.sha256(flags.encode()).hexdigest()[:8]])


def in_fresh_process() -> dict:
    """`measure` where nothing has run before."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(again: Callable[[], dict] = in_fresh_process) -> str:
    """Run twice and compare; returns what was found, raises AssertionError where a curve differs.

    Args:
        again: The second run.
    """
    first, second = in_fresh_process(), again()
    assert len(first["train/reward"]) == STEPS
    assert first == second, f"two runs on this machine differ:\n{first}\n{second}"
    golden = json.loads(CURVE.read_text())
    if golden["machine"] == machine():
        assert golden["curve"] == first, f"the committed curve is not met:\n{golden['curve']}\n{first}"
        return "bit for bit: two runs and the committed curve"
    for a, b in zip(golden["curve"]["train/reward"], first["train/reward"], strict=True):
        assert abs(float.fromhex(a) - float.fromhex(b)) < 2 * NEAR, (a, b)
    return "bit for bit: two runs (the committed curve is another machine's, and near)"


def main() -> None:
    """Measure, update or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        sys.modules.update(datasets=None, deepspeed=None)  # what fit on the embedded model does without
        print(json.dumps(measure()))
    elif arguments.update:
        CURVE.write_text(json.dumps({"machine": machine(), "curve": in_fresh_process()}, indent=1) + "\n")
    else:
        print(compare())


if __name__ == "__main__":
    main()
