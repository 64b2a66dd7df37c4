"""`serve`: an OpenAI-compatible server of the model and its experts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from transformer2.callbacks.interrupt import current
from transformer2.cli.adaptive import MODEL_HELP, load, model_of
from transformer2.cli.compose import flags_of
from transformer2.cli.values import number
from transformer2.errors import ConfigError, UserError
from transformer2.files import check_directory, read_file

HELP = f"""\
usage: transformer2 serve [options]

Serve the model and its experts over HTTP, as OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions; /health,
/metrics, and a page at /. Requests share one running batch, each under its own z. Model names: auto (the strategy
chooses), base, an expert's name, or mix:math=0.6,code=0.9. Ctrl-C or SIGTERM finishes what runs. See docs/serve.md.

  --host HOST             where to listen (default 127.0.0.1: this machine alone)
  --port PORT             default 8000; 0 takes a free one
  --api_key_file FILE     callers must give the key in it; or set TRANSFORMER2_API_KEY
  --api_key KEY           the same, for a quick try: others on this machine see it in the list of processes
  --experts_dir DIR       callers may add experts from this folder, and remove experts (POST, DELETE /v1/experts)
  --image_dir DIR         chats may show pictures from this folder by path, where the base takes pictures; without it,
                          those in data: URLs alone
  --max_rows N            answers under way at a time (default 64)
  --max_queue N           answers that may wait (default 256); requests beyond that get 429 and Retry-After
  --max_tokens N          most tokens that a request may ask for (default: what the model has room for)
  --max_body N            bytes of a request (default 4194304)
  --max_seconds N         seconds from a request to the end of its answer (default 600)

{"".join(line for line in MODEL_HELP.splitlines(keepends=True) if "--use" not in line)}"""
KEY = "TRANSFORMER2_API_KEY"
LIMITS = {"max_queue": 0, "max_tokens": 1, "max_body": 1, "max_seconds": 1.0}  # and their smallest values
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(args: Sequence[str]) -> int:
    """Serve until a signal comes."""
    flags = flags_of(args, HELP)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'transformer2[serve]'")
    options = flags.options
    arguments, api_key = model_of(flags), _api_key(options)
    host, port = options.get("host", "127.0.0.1"), number(options, "port", 8000, 0, 65535)
    max_rows = number(options, "max_rows", 64, 1)
    asked = {name: number(options, name, None, low) for name, low in LIMITS.items()}
    folders = {name: options[name] for name in ("experts_dir", "image_dir") if name in options}
    for name, folder in folders.items():
        check_directory(folder, f"--{name}", "make it first", ConfigError)

    from transformer2.serving.run import address, bind, is_loopback, run

    bound = bind(host, port)  # before the model is loaded: the address may be taken
    loopback = is_loopback(bound)
    if not loopback and api_key is None:
        print(f"transformer2: whoever reaches {address(bound)} can use it; set {KEY}", file=sys.stderr)

    from transformer2.serving.app import create_app
    from transformer2.serving.guard import LOOPBACK, Limits

    limits = Limits(**{name.removeprefix("max_"): value for name, value in asked.items() if value is not None})
    may_come = "experts_dir" in folders and options.get("experts", "none") == "none"
    later = [arguments.pop(name) for name in ("strategy", "soft")] if may_come else []
    model = load(arguments, max_rows=max_rows)
    if later:
        model.set_strategy(*later)
    app = create_app(model, limits, api_key, {*LOOPBACK, host.lower()} if loopback else None, **folders)
    listener = current()

    def ready(stop: Callable[[], None]) -> None:
        def finish() -> None:
            print(f"finishing {app.state.engine.answers} answers; a second signal ends at once", flush=True)
            stop()

        if listener is not None:
            listener.stop, listener.on_signal = finish, lambda number: "answers under way were cut off"
        print(f"serving {', '.join(['auto', 'base', *model.experts])} at {address(bound)}", flush=True)

    run(app, bound, ready)
    return 0


def _api_key(options: Mapping[str, str]) -> str | None:
    key = options.get("api_key", os.environ.get(KEY))
    if "api_key_file" in options:
        if "api_key" in options:
            raise ConfigError("give --api_key_file or --api_key, not both")
        key = read_file(options["api_key_file"], 10_000, ConfigError).decode(errors="replace")
    if key is None:
        return None
    key = key.strip()
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError("an API key is printable ASCII text without line breaks; give another one, or none")
    return key
