"""Real runs of the command line on two CPU processes, against one process with the same global batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SECONDS = 240  # then the whole process group is killed: a rank that waits for another ignores SIGTERM


class Runs:
    """Starts `transformer2 fit` on a small Llama in a process group of its own."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base

    def command(self, name, *flags, launch=("-m", "transformer2"), steps=5, verb="fit"):
        small = ["--model.dtype", "float32", "--data.batch_size", "32", "--data.task", "toy_task.Ragged"]
        rate = [
            "--model.optimizer.lr",
            "2e-3",
            "--model.loss.kl_coef",
            "0.1",
            "--model.memory.micro_batch_tokens",
            "300",
        ]
        length = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
        adapter = json.dumps({"peft_type": "SVF", "target_modules": "all-linear"})
        return [
            *(sys.executable, *launch, verb, "--config", "conf/base.yaml", "--quiet", "--trainer.accelerator", "cpu"),
            *("--model.base", str(self.base), "--model.adapter", adapter, *small, *rate, *length),
            *("--run_dir", str(self.folder / name), *flags),
        ]

    def adapt_command(self, name, *flags):
        """`transformer2 adapt` with all strategies, on the embedded model."""
        few = ["--data.few_shot", "3", "--data.test_limit", "9", "--data.eval_batch_size", "4"]
        search = ["--adapt.population", "5", "--adapt.generations", "2", "--adapt.dispatch_limit", "9"]
        verb = [sys.executable, "-m", "transformer2", "adapt", "--config", "conf/adapt_tiny.yaml", "--strategy", "all"]
        return [*verb, *few, *search, "--quiet", "--run_dir", str(self.folder / name), *flags]

    def start(self, *args, environment=(), verb="fit", **kwargs):
        path = os.pathsep.join(p for p in sys.path if p)
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        pipe = subprocess.PIPE
        environment = {**os.environ, **own, **dict(environment)}
        command = self.adapt_command(*args) if verb == "adapt" else self.command(*args, **kwargs, verb=verb)
        return subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def finish(self, process, seconds=SECONDS):
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"hung; its output:\n{process.communicate()[0][-4000:]}") from None
        return process.returncode, output

    def run(self, *args, **kwargs):
        code, output = self.finish(self.start(*args, **kwargs))
        assert code == 0, output[-4000:]
        return output

    def same(self, one, other):
        """The two experts agree to 1e-6."""
        left, right = self.z(one), self.z(other)
        assert left.keys() == right.keys()
        assert max(float(z.abs().max()) for z in left.values()) > 3e-3, "training must have moved z"
        assert max(float((left[key] - right[key]).abs().max()) for key in left) < 1e-6

    def z(self, name):
        """The expert of a run: module -> z - 1."""
        return load_file(self.folder / name / "expert" / "adapter_model.safetensors")

    def report(self, name):
        report = json.loads((self.folder / name / "report.json").read_text())
        return {key: report[key] for key in ("n", "base", "result", "paired_p")}

    def records(self, name):
        return (self.folder / name / "records.jsonl").read_text()


@pytest.fixture(scope="session")
def runs(tmp_path_factory, llama):
    return Runs(tmp_path_factory.mktemp("runs"), llama)


@pytest.fixture(scope="session")
def one(runs):
    """The run of one process that the others are measured against."""
    runs.run("one")
    return "one"


@pytest.fixture(scope="session")
def natural(runs):
    """The same under the natural gradient: its run, and the flags that ask for it."""
    flags = ("--optimizer", "NaturalGradient", "--optimizer.lr", "0.1")
    runs.run("natural", *flags)
    return "natural", flags
