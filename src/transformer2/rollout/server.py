"""A vLLM server: started with the run, or already running, and its HTTP client.

vLLM pins other versions of torch and transformers than a trainer has, so it runs in an environment and a process of
its own. What it needs of ours is one file (on_server/transformer2_worker.py).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2

from transformer2.arguments import Count, Positive, check_arguments
from transformer2.errors import ConfigError, UserError

ON_SERVER = Path(__file__).parent / "on_server"
PYTHON_VARIABLE = "TRANSFORMER2_VLLM_PYTHON"
# What a launcher tells the trainer's processes; vLLM would take it for its own.
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR")
_ENDS_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # now: not between fork and exec


@dataclass(frozen=True)
class VLLMOptions:
    """How rollouts by vLLM are set up (`model.vllm`).

    Attributes:
        url: A running server, e.g. `http://10.0.0.2:8000`; None starts one alongside the run. docs/rollouts.md says how
            to start one by hand.
        python: The interpreter of the environment that vLLM is installed in; None takes $TRANSFORMER2_VLLM_PYTHON,
            else the trainer's own.
        args: Further arguments of the server that is started, e.g. `[--gpu-memory-utilization, "0.4"]`.
        devices: CUDA_VISIBLE_DEVICES of the server that is started; None leaves it as it is.
        sync: `z` sends z alone, 4 bytes per singular value, to a server that keeps W and the bases in host memory;
            `merged` sends the composed weights.
        shared_folder: Where large packets are passed as files: a folder that both sides see, memory-backed for speed.
            None takes /dev/shm for a server that was started here, and sends packets over HTTP to one that was not.
        bucket_mib: Size of a packet; one module's weights are not divided.
        concurrency: Requests under way at a time.
        start_minutes: How long the server that is started may take until it answers.
        timeout_minutes: How long it may take over one request: the longest completion, or loading weights.
    """

    url: str | None = None
    python: str | None = None
    args: list[str] = field(default_factory=list)
    devices: str | None = None
    sync: Literal["z", "merged"] = "z"
    shared_folder: str | None = None
    bucket_mib: Count = 256
    concurrency: Count = 128
    start_minutes: Positive = 15.0
    timeout_minutes: Positive = 30.0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_arguments("model.vllm", VLLMOptions.__init__, vars(self))
        try:
            usable = self.url is None or httpx2.URL(self.url).scheme in ("http", "https")
        except httpx2.InvalidURL:
            usable = False
        if not usable:
            raise ConfigError(f"model.vllm.url {self.url!r} is not a URL; write http://HOST:PORT")


class Refused(UserError):
    """The server answered, and said no."""


class Client:
    """JSON over HTTP. Threads may share it: every request has a connection of its own, none is idle and closed on us.

    Args:
        url: `http://HOST:PORT`, with a path where the server has one.
        timeout_minutes: For each request.
    """

    def __init__(self, url: str, timeout_minutes: float) -> None:
        self.url = url.rstrip("/")
        key = os.environ.get("VLLM_API_KEY")
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=60 * timeout_minutes,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # no proxy knows our loopback
        )

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to a POST of a body, or to a GET without one; None where it is empty.

        Raises:
            Refused: With the server's words.
            UserError: It does not answer, or it is no such server.
        """
        try:
            answer = self._http.get(path) if body is None else self._http.post(path, json=body)
            if not answer.is_success:
                raise Refused(f"the vLLM server refuses {path} ({answer.status_code}): {answer.text[:300]}")
            return answer.json() if answer.content else None
        except httpx2.RequestError as e:
            raise UserError(
                f"the vLLM server at {self.url} does not answer ({e}); is it running, and is model.vllm.url right?"
            ) from e
        except json.JSONDecodeError as e:
            raise UserError(f"what answers at {self.url} is not a vLLM server: {path} gives no JSON") from e


class Server:
    """A vLLM server that lives as long as this process.

    Args:
        options: See VLLMOptions.
        model: Folder or Hub id.
        dtype: Its weights' dtype, `float32`, `bfloat16`, ...
        on_gpu: Whether this machine's vLLM runs on a GPU.
        pictures: Whether prompts come with pictures.

    Attributes:
        url: Where it listens, on the loopback interface alone: whoever reaches it can change its weights.

    Raises:
        ConfigError: vLLM is not installed there, or the server ended; the message has its last words.
    """

    def __init__(self, options: VLLMOptions, model: str, dtype: str, on_gpu: bool, pictures: bool = False) -> None:
        python = options.python or os.environ.get(PYTHON_VARIABLE) or sys.executable
        _check_vllm(python)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="transformer2-vllm-"))
        self.log = self.folder / "server.log"
        command = [python, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", model, "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
        # The model's generation_config.json would change temperature and top_p; ours are said with each request.
        command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        command += ["--worker-extension-cls", "transformer2_worker.SVFWorker"]
        command += [] if on_gpu else ["--enforce-eager"]  # compiling takes minutes there, and a C++ compiler
        command += ["--enable-scale-out"] if pictures else []  # token ids and pictures in one request
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, *options.args],
                env=_environment(options, on_gpu, self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self.stopped = False
        atexit.register(self.stop)
        self._wait(time.monotonic() + 60 * options.start_minutes)

    def _wait(self, until: float) -> None:
        print(f"starting vLLM (its log: {self.log})", file=sys.stderr, flush=True)
        client = Client(self.url, timeout_minutes=5 / 60)
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(UserError):
                client.request("/health")
                return
            time.sleep(0.5)
        ended = self.process.poll() is not None
        said = self.stop(keep_log=True)
        what = "ended" if ended else "did not answer in time (model.vllm.start_minutes)"
        raise ConfigError(f"the vLLM server {what}: {said}; its log is {self.log}")

    def stop(self, keep_log: bool = False) -> str:
        """End it and all of its processes; its last words. Once: a log that was kept stays."""
        if self.stopped:
            return ""
        self.stopped = True
        atexit.unregister(self.stop)
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        # Python's resource tracker is the last of its group to end: it gives shared memory back.
        while self._signal(0) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._signal(signal.SIGKILL)
        self.process.wait()
        said = _last_words(self.log) if self.log.exists() else ""
        if not keep_log:
            shutil.rmtree(self.folder, ignore_errors=True)
        return said

    def _signal(self, number: int) -> bool:
        """Send a signal to the group; whether there is one."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _check_vllm(python: str) -> None:
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True).returncode == 0
    except OSError as e:
        raise ConfigError(f"model.vllm.python {python!r} cannot be run ({e.strerror})") from e
    if not found:
        raise ConfigError(
            f"{python} has no vLLM; install it into an environment of its own (docs/rollouts.md) and name its "
            f"interpreter with --model.vllm.python or ${PYTHON_VARIABLE}"
        )


def _environment(options: VLLMOptions, on_gpu: bool, folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _LAUNCHER}
    # PYTHONPATH is this folder alone: the trainer's packages are of other versions.
    kept |= {"PYTHONPATH": str(ON_SERVER), "VLLM_SERVER_DEV_MODE": "1", "TMPDIR": str(folder)}
    kept.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns of every weight that a partial update leaves alone
    if not on_gpu:
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    if options.devices is not None:
        kept["CUDA_VISIBLE_DEVICES"] = options.devices
    return kept


def _end_with_parent() -> None:
    """Between fork and exec: a trainer that is killed takes its server along (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_ENDS_WITH_PARENT, signal.SIGTERM)


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return ((errors or lines or ["it said nothing"])[-1])[-300:]
