"""Ctrl-C and SIGTERM end a run after the step in progress, with a checkpoint that resumes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from transformer2.cli import main

FLAGS = [
    *("fit", "--config", "conf/tiny.yaml", "--data.task", "tiny_math", "--data.batch_size", "8"),
    *("--data.validation_limit", "4", "--data.test_limit", "4", "--trainer.val_check_interval", "2"),
]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_resumes(number: int, code: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "transformer2", *FLAGS, "--run_dir", str(run), "--trainer.max_steps", "5000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 200
    while not (run / "expert" / "adapter_config.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    checkpoint = re.search(r"resume with --ckpt_path (\S+)", error)[1]
    assert Path(checkpoint).is_file()
    again = tmp_path / "again"
    steps = torch.load(checkpoint, weights_only=False)["global_step"] + 2
    more = ["--run_dir", str(again), "--trainer.max_steps", str(steps), "--quiet", "--ckpt_path", checkpoint]
    assert main([*FLAGS, *more]) == 0
    assert (again / "report.json").is_file()
