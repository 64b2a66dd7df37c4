"""Ctrl-C, SIGTERM and SIGHUP at any time: what there is to save is saved, the process ends, it says how to resume."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from short_runs import FIT as TINY
from short_runs import SMALL, same

from transformer2.cli import main

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
SECONDS = 10  # from the signal to the end, on an idle machine; the test allows for a busy one
FIT = [*TINY, "--data.task", "toy_task.FirstLetter"]
ADAPT = ["adapt", "--data.test_limit", "8", "--quiet"]
SEARCH = ["--adapt.generations", "1", "--adapt.population", "2"]
VALIDATE = ["validate", "--config", "conf/tiny.yaml", *SMALL]

# phase: command, hook that it is stuck in, steps done before, hint
PHASES = {
    "set-up": (FIT, "setup", 0, "nothing was saved yet"),
    "baseline": (FIT, "on_train_start", 0, "nothing was saved yet"),
    "first step": (FIT, "on_train_batch_start", 1, "nothing was saved yet"),
    "step": (FIT, "on_before_optimizer_step", 3, "resume with --ckpt_path"),
    "validation": (FIT, "on_validation_batch_start", 4, "resume with --ckpt_path"),
    "last validation": (FIT, "on_validation_batch_start", 6, "resume with --ckpt_path"),
    "test after fit": (FIT, "on_test_start", 6, "the trained expert is in"),
    "validate": (VALIDATE, "on_validation_start", 0, "nothing was changed"),
    "test": (["test", *VALIDATE[1:]], "on_test_start", 0, "nothing was changed"),
    "adapt prompt": ([*ADAPT, "--strategy", "prompt"], "evaluate_batch", 0, "nothing was saved yet"),
    "adapt cls": ([*ADAPT, "--strategy", "cls"], "evaluate_batch", 0, "nothing was saved yet"),
    "adapt cem": ([*ADAPT, *SEARCH], "evaluate_batch", 0, "adapt --resume"),
}


def start(args, marker, hook="none", step=0, callback=""):
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    stuck = f"[{{class_path: stuck.Stuck, init_args: {{hook: {hook}, marker: {marker}, step: {step}}}}}{callback}]"
    command = [sys.executable, "-m", "transformer2", *args, "--trainer.callbacks", stuck]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Under nohup a SIGHUP is ignored, by what nohup starts and by its children (test_nohup_is_respected).
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 200
    while hook != "none" and not marker.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncut") / "run"
    assert main([*FIT, "--run_dir", str(folder)]) == 0
    return folder


def cases():
    for phase in PHASES:
        for name in CODES:
            fast = (phase, name) in {("validation", "SIGHUP")}
            yield pytest.param(phase, name, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("phase", "name"), cases())
def test_saved_and_gone_whatever_the_main_thread_is_doing(phase, name, tmp_path, uncut):
    args, hook, step, hint = PHASES[phase]
    run = tmp_path / "run"
    process = start([*args, "--run_dir", str(run)], tmp_path / "marker", hook, step)
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=6 * SECONDS)
    print(f"{phase} {name}: gone after {time.monotonic() - sent:.1f} s")
    said = [line for line in error.splitlines() if line.startswith("transformer2:")]
    assert process.returncode == CODES[name] and len(said) == 1 and hint in said[0], error
    assert "Traceback" not in error
    if "resume with" in hint:
        checkpoint = Path(said[0].split("--ckpt_path ")[1])
        done = torch.load(checkpoint, weights_only=True)["global_step"]
        assert done == (step if step < 6 else 5)  # Lightning would not go back to a validation after the last step
        assert sorted(p.name for p in checkpoint.parent.iterdir()) in (["last.ckpt"], ["last.ckpt", "previous.ckpt"])
        again = tmp_path / "again"
        assert main([*FIT, "--run_dir", str(again), "--ckpt_path", str(checkpoint)]) == 0
        same(again, uncut)
    elif "expert" in hint:
        assert load_file(run / "expert" / "adapter_model.safetensors")
    elif "adapt" in hint:
        assert main(["adapt", "--resume", str(run), "--quiet", "--trainer.callbacks", "[]"]) == 0


@pytest.mark.slow
def test_a_checkpoint_of_the_users_own_is_named_where_there_is_no_other(tmp_path, uncut):
    where = f"dirpath: {tmp_path}, every_n_train_steps: 1, save_last: true"
    own = f", {{class_path: ModelCheckpoint, init_args: {{{where}}}}}"
    run, again = tmp_path / "run", tmp_path / "again"
    process = start([*FIT, "--run_dir", str(run)], tmp_path / "marker", "on_train_batch_start", 1, own)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=6 * SECONDS)
    assert error.strip().endswith(f"interrupted; resume with --ckpt_path {tmp_path / 'last.ckpt'}"), error
    assert main([*FIT, "--run_dir", str(again), "--ckpt_path", str(tmp_path / "last.ckpt")]) == 0
    same(again, uncut)


@pytest.mark.slow
def test_the_second_signal_does_not_wait(tmp_path):
    process = start([*FIT, "--run_dir", str(tmp_path / "run")], tmp_path / "marker", "on_before_optimizer_step", 3)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.count("resume with --ckpt_path") == 1, error


def test_after_all_steps_the_best_is_scored_and_kept(uncut, tmp_path):
    again, longer = tmp_path / "again", tmp_path / "longer"
    last = ["--ckpt_path", str(uncut / "checkpoints" / "last.ckpt")]
    assert main([*FIT, "--run_dir", str(again), *last]) == 0
    same(again, uncut)
    assert main([*FIT, "--run_dir", str(longer), *last, "--trainer.max_steps", "8"]) == 0
    assert load_file(longer / "expert" / "adapter_model.safetensors")


def test_a_checkpoint_past_the_last_step_is_refused(uncut, tmp_path, capfd):
    last = ["--ckpt_path", str(uncut / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "2"]
    assert main([*FIT, "--run_dir", str(tmp_path / "shorter"), *last]) == 2
    assert "has 6 steps already; give a trainer.max_steps above that" in capfd.readouterr().err
    assert not (tmp_path / "shorter").exists()


def test_in_a_thread_there_are_no_signals_and_the_command_runs(tmp_path):
    codes = []
    short = [*FIT, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.logger", "false"]
    thread = threading.Thread(target=lambda: codes.append(main([*short, "--run_dir", str(tmp_path / "run")])))
    thread.start()
    thread.join()
    assert codes == [0] and (tmp_path / "run" / "report.json").exists()


def test_nohup_is_respected():
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += "from transformer2.callbacks.interrupt import listening\n"
    code += "with listening(): print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    path = os.pathsep.join(p for p in sys.path if p)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.strip() == "True", found.stderr
