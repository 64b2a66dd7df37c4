"""What every benchmark shares: interleaved timing, peak and saved memory, the machine's description.

Timing: all forms run in turn within one round, rounds repeat, and what is reported is the median over rounds of the
ratio within a round, so that a slow minute of a shared machine hits every form alike. On the CPU a time is the
process's CPU seconds under one thread; on a GPU it is wall-clock seconds around a synchronisation.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from _results import Row
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIB = 2**20

__all__ = [
    "DEVICE",
    "MIB",
    "Row",
    "Times",
    "allocated",
    "free_memory",
    "interleave",
    "machine",
    "peak_bytes",
    "saved_bytes",
]


class Times:
    """Seconds of every form in every round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = seconds

    def median(self, name: str) -> float:
        """Median seconds of one form."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over rounds of this form's seconds over the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


def interleave(forms: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> Times:
    """Run every form once per round; the order turns by one each round, so that none always follows the same one."""
    names = list(forms)
    for name in names * warmup:
        forms[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = _clock()
            forms[name]()
            seconds[name].append(_clock() - start)
    return Times(seconds)


def _clock() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_bytes(run: Callable[[], object]) -> int:
    """Largest number of bytes allocated by `run` and alive at one time, temporaries inside operators included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    trace = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False)
    with _quiet():
        trace.start()
    run()
    with _quiet():
        trace.stop()
    assert trace.profiler is not None
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what native code writes to standard error away: the profiler announces itself."""
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def saved_bytes(forward: Callable[[], object], resident: Iterable[Tensor]) -> int:
    """Bytes kept for the backward pass of `forward`, each storage once, without those of `resident`.

    Args:
        forward: Runs the forward pass and returns what holds its graph.
        resident: Tensors that are there anyway: parameters, buffers, composed weights.
    """
    known = {t.untyped_storage().data_ptr() for t in resident}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = forward()
    del held
    return sum(kept.values())


def allocated() -> int:
    """Bytes of tensors on the GPU; 0 on the CPU, where nobody counts them."""
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


def free_memory() -> None:
    """Give back what nothing refers to any more; PEFT's models hold themselves in cycles."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def machine() -> dict[str, str | int]:
    """The machine and the versions, without a host's name; `kind` is a short name for files: `cpu2`, or the GPU's."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "kind": f"cpu{os.cpu_count()}",
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "lightning")},
        **(_gpu() if DEVICE.type == "cuda" else {}),
    }


def _gpu() -> dict[str, str | int]:
    name = torch.cuda.get_device_name()
    return {
        "kind": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "gpu": name,
        "gpu_memory": f"{torch.cuda.get_device_properties(DEVICE).total_memory / 2**30:.0f} GiB",
        "driver": _driver(),
        "cuda": torch.version.cuda or "none",
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    return lines[0].strip() if lines else "unknown"
