"""`serve`: an OpenAI-compatible server of the model and its experts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformer2.callbacks.interrupt import current
from transformer2.cli.compose import parse_flags
from transformer2.errors import ConfigError, UserError

HELP = """\
usage: transformer2 serve [options]

Serve the model and its experts over HTTP, as OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions; /health,
/metrics, and a page at /. Requests share one running batch, each under its own z. Model names: auto (the strategy
chooses), base, an expert's, or mix:math=0.6,code=0.9. Ctrl-C or SIGTERM finishes what runs.

  --host HOST             where to listen (default 127.0.0.1: this machine alone)
  --port PORT             default 8000; 0 takes a free one
  --api_key_file FILE     callers must give this key; or set TRANSFORMER2_API_KEY
  --api_key KEY           the same, for tries: others on this machine see it in the list of processes
  --experts_dir DIR       let experts in this folder be added and removed while it runs (POST, DELETE /v1/experts)
  --max_rows N            requests under way at a time (default 64)
  --max_queue N           requests that wait (default 256); what is more is told to come again
  --max_tokens N          budget of an answer (default: what the model has room for)
  --max_body N            bytes of a request (default 4194304)
  --max_seconds N         from a request to the end of its answer (default 600)

"""
KEY = "TRANSFORMER2_API_KEY"
OPTIONS = ("host", "port", "api_key_file", "api_key", "experts_dir", "max_rows", "max_queue", "max_tokens", "max_body",
           "max_seconds")  # fmt: skip
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(args: Sequence[str]) -> int:
    """Serve until a signal comes."""
    flags = parse_flags(args, OPTIONS, ("help",), ())
    if "help" in flags.switches:
        print(HELP, end="")
        return 0
    options = flags.options
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'transformer2[serve]'")
    port, api_key = _number(options, "port", 8000, 0, 65535), _api_key(options)
    numbers = {name: _number(options, f"max_{name}", None, 0 if name == "queue" else 1) for name in
               ("body", "tokens", "queue", "seconds")}  # fmt: skip
    max_rows = _number(options, "max_rows", 64, 1)
    experts_dir = options.get("experts_dir")
    if experts_dir is not None and not Path(experts_dir).expanduser().is_dir():
        raise ConfigError(f"--experts_dir: {experts_dir} is no folder; make it first")

    from transformer2.serving.limits import Limits
    from transformer2.serving.run import address, bind, is_loopback, run

    limits = Limits(**{name: value for name, value in numbers.items() if value is not None})
    host = options.get("host", "127.0.0.1")
    bound = bind(host, port)  # before the model is loaded: the address may be taken

    from transformer2.adaptive.model import SelfAdaptive
    from transformer2.serving.app import create_app
    from transformer2.serving.guard import LOOPBACK

    model = SelfAdaptive.from_pretrained(max_rows=max_rows)
    hosts = {*LOOPBACK, host.lower()} if is_loopback(bound) else None
    if hosts is None and api_key is None:
        print("transformer2: whoever reaches this address can use it; set TRANSFORMER2_API_KEY", file=sys.stderr)
    app = create_app(model, limits, api_key, hosts, experts_dir)
    listener = current()

    def ready(stop: Callable[[], None]) -> None:
        def finish() -> None:
            print(f"finishing {app.state.engine.answers} answers; a second signal ends at once", flush=True)
            stop()

        if listener is not None:
            listener.stop, listener.farewell = finish, lambda number: "answers under way were cut off"
        print(f"serving {', '.join(['auto', 'base', *model.experts])} at {address(bound)}", flush=True)

    run(app, bound, ready)
    return 0


def _api_key(options: dict[str, str]) -> str | None:
    key: str | None = None
    if "api_key_file" in options:
        from transformer2.files import read_file

        key = read_file(Path(options["api_key_file"]).expanduser(), 10_000, ConfigError).decode(errors="replace")
    key = options.get("api_key", key if key is not None else os.environ.get(KEY))
    if key is not None and not (key.strip().isascii() and key.strip().isprintable() and key.strip()):
        raise ConfigError("an API key is printable ASCII text; give another one, or none")
    return None if key is None else key.strip()


def _number(options: dict[str, str], name: str, default: int | None, low: int, high: int = 1 << 40) -> int | None:
    try:
        value = int(options[name]) if name in options else default
    except ValueError:
        value = -1
    if value is not None and not low <= value <= high:
        raise ConfigError(f"--{name} must be a whole number from {low} to {high}, not {options[name][:80]!r}")
    return value
