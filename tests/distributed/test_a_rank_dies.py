"""A process is killed in the middle: all end within a minute, non-zero, and the last checkpoint resumes."""

import os
import signal
import time
from pathlib import Path

import pytest
from two_processes import DDP, SHARDED, TORCHRUN

pytestmark = pytest.mark.distributed

ZERO3 = ("--config", "conf/strategy/zero3.yaml", "--trainer.devices", "2", *SHARDED[:2])
OWN = ("-m", "transformer2")
MINUTE = 60


def every_step(folder):
    """A checkpoint after each step."""
    return (
        "--trainer.callbacks",
        "[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: "
        f"{folder}/checkpoints, every_n_train_steps: 1, save_last: true, save_on_train_epoch_end: false}}}}]",
    )


def ranks(folder):
    """Process id of each rank of the run in a folder, but for a launcher that is rank 0 itself."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:  # gone meanwhile
                continue
            rank = next((int(w[11:]) for w in words if w.startswith(b"LOCAL_RANK=")), None)
            if rank is not None and str(folder).encode() in command.split(b"\0"):
                found[rank] = int(entry.name)
    return found


def ended(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("launch,flags,victim", [(OWN, DDP, 0), (OWN, DDP, 1), (TORCHRUN, DDP, 1), (OWN, ZERO3, 1)])
def test_all_end_and_the_last_checkpoint_resumes(runs, one, launch, flags, victim):
    if flags is ZERO3:
        pytest.importorskip("deepspeed", reason="DeepSpeed is installed on Linux alone")
    name = f"killed-{len(launch)}-{len(flags)}-{victim}"
    folder = runs.folder / name
    process = runs.start(name, *flags, *every_step(folder), launch=launch, environment={"RAGGED_SECONDS": "0.2"})
    deadline = time.monotonic() + 4 * MINUTE
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline, runs.finish(process, 1)[1][-4000:]
        time.sleep(0.1)
    time.sleep(1.5)  # into the next step
    pids = {0: process.pid, **ranks(folder)} if launch is OWN else ranks(folder)
    assert len(pids) == 2 and not any(ended(pid) for pid in pids.values()), pids
    killed = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    code, output = runs.finish(process, MINUTE)
    while not all(ended(pid) for pid in pids.values()):
        assert time.monotonic() < killed + MINUTE, output[-4000:]
        time.sleep(0.1)
    print(f"{name}: all ended {time.monotonic() - killed:.1f} s after, code {code}")
    assert code != 0
    runs.run(f"{name}-resumed", *flags, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), launch=launch)
    runs.same(one, f"{name}-resumed")


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs, one):
    folder = runs.folder / "signalled"
    process = runs.start("signalled", *DDP, *every_step(folder), environment={"RAGGED_SECONDS": "0.2"})
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, output = runs.finish(process, MINUTE)
    assert code == 143 and "resume with --ckpt_path" in output, output[-4000:]
    runs.run("signalled-resumed", *DDP, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    runs.same(one, "signalled-resumed")
