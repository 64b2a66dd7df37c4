"""Runs that are killed at random, and checkpoints cut in the middle: nothing that was good is lost.

`nox -s faults` runs the whole of it: 100 times kill -9 (TMPDIR here and on another file system) and 40 half-writes.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from short_runs import FIT, same

from transformer2.checkpoints import pack, read_checkpoint, write_checkpoint
from transformer2.errors import CheckpointError

KILLS = int(os.environ.get("FAULTS_KILLS", "100"))
ELSEWHERE = Path("/dev/shm")
CONTENT = {"state_dict": {}, "step": 0}


def fit(run, tmpdir, *more):
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmpdir)}
    command = [sys.executable, "-m", "transformer2", *FIT, "--run_dir", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def started(run, process):
    """When the run folder is there: from here on it is set up, trains, validates, tests and reports."""
    deadline = time.monotonic() + 200
    while not (run / "config.yaml").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    return time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("tmpdir", ["here", "elsewhere"])
def test_random_kills_lose_nothing(tmp_path, tmpdir):
    if tmpdir == "elsewhere" and not ELSEWHERE.is_dir():
        pytest.skip("no other file system here")
    temporary = ELSEWHERE if tmpdir == "elsewhere" else tmp_path
    rng, uncut = random.Random(tmpdir), tmp_path / "uncut"
    process = fit(uncut, temporary)
    began = started(uncut, process)
    assert process.wait(timeout=400) == 0
    whole = time.monotonic() - began  # so that kills fall everywhere, on slow and busy machines, too
    chains, resumed, kills, last = 0, 0, 0, None
    for number in itertools.count():
        run = tmp_path / f"run{number}"
        process = fit(run, temporary, *(["--ckpt_path", str(last)] if last else []))
        started(run, process)
        killed = kills < KILLS // 2
        if killed:
            time.sleep(rng.uniform(0, whole))
            process.send_signal(signal.SIGKILL)
            kills += 1
        output, _ = process.communicate(timeout=200)
        found = run / "checkpoints" / "last.ckpt"
        for file in (run / "checkpoints").glob("*.ckpt"):  # whatever there is, is good
            read_checkpoint(file)
        if process.returncode == 0:
            same(run, uncut)
            chains, resumed, last = chains + 1, resumed + (last is not None), None
            if not killed:
                break
        else:
            assert killed, output
            last = found if found.exists() else last
    print(f"TMPDIR {tmpdir}: {kills} kills, {chains} runs ended, {resumed} of them resumed, all as the uncut run")


HALF = """
import os, sys
from transformer2.checkpoints import pack, write_checkpoint
write, replace, fsync = os.write, os.replace, os.fsync
where, path = sys.argv[1], sys.argv[2]
def die(*args): os._exit(9)
if where == "fsync": os.fsync = die
if where == "replace": os.replace = die
if where == "after": os.replace = lambda *a: (replace(*a), die())
data = pack({"state_dict": {}, "step": 1, "pad": "x" * 100_000})
if where.isdigit():
    import builtins
    class Half:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *a): self.file.close()
        def write(self, data): self.file.write(data[: int(where)]); self.file.flush(); die()
    real = builtins.open
    def half(path, mode="r", *a, **k):
        file = real(path, mode, *a, **k)
        return Half(file) if mode == "wb" else file
    builtins.open = half
write_checkpoint(data, path)
"""


@pytest.mark.slow
def test_half_writes_leave_the_old_or_the_new(tmp_path):
    rng = random.Random(0)
    places = ["fsync", "replace", "after", *(str(rng.randrange(100_000)) for _ in range(37))]
    path = tmp_path / "last.ckpt"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for place in places:
        write_checkpoint(pack(CONTENT), path)
        done = subprocess.run([sys.executable, "-c", HALF, place, str(path)], env=environment, capture_output=True)
        assert done.returncode == 9, done.stderr
        assert read_checkpoint(path)["step"] == (1 if place == "after" else 0), place
        # What such a write would have left under the final name before is refused.
        for half in tmp_path.glob(".last.ckpt.*"):
            if place.isdigit():
                with pytest.raises(CheckpointError):
                    read_checkpoint(half)
            half.unlink()
