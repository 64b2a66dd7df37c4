"""The untrusted side: runs a candidate's code and answers questions about what it defined. Nothing here is a safeguard.

The candidate shares this interpreter and can rewrite every line of it; all it can gain is to send other data. The walls
are the process's (`jail.py`), and the verdict is made elsewhere (`checker.py`).

    <- {"layers": {layer: why missing}}                    put on before anything is read
    -> {"code": source}                                    <- {"ok": form} or {"error": type, "text": ...}
    -> {"do": "call" | "get" | "set" | ..., "on": name or handle, ...}   <- the same
"""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

from transformer2.verifiers.code.values import Closed, TooLarge, decode, encode, receive, send

__all__ = ["serve"]

MODULE = "candidate"  # not __main__: what a script does when started is no part of what it defines
MAX_ITEMS = 100_000  # of an iterator that a test wants to see whole


def serve(channel: int, missing: dict[str, str]) -> None:
    """Answer on `channel` until the other side closes it."""
    send(channel, {"layers": missing})
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    kept: dict[int, Any] = {}

    def keep(value: Any) -> dict[str, Any]:
        kept[id(value)] = value
        return {"h": id(value), "n": str(type(value).__name__)}

    def find(target: Any) -> Any:
        return kept[target] if isinstance(target, int) else module.__dict__[target]

    def read(form: Any) -> Any:
        return decode(form, lambda target, _: find(target))

    def do(message: dict[str, Any]) -> Any:
        if "code" in message:
            exec(compile(message["code"], "<candidate>", "exec", dont_inherit=True), module.__dict__)
            return None
        target = find(message["on"])
        match message["do"]:
            case "call":
                named = {name: read(form) for name, form in message["named"].items()}
                return target(*map(read, message["arguments"]), **named)
            case "get":
                return getattr(target, message["name"])
            case "set":
                return setattr(target, message["name"], read(message["value"]))
            case "bool":
                return bool(target)
            case "len":
                return len(target)
            case "next":
                return next(target)
            case "item":
                return target[read(message["value"])]
            case "list":
                return list(itertools.islice(target, MAX_ITEMS))
        raise ValueError(message["do"])

    while True:
        try:
            message = receive(channel)
            try:
                answer = {"ok": encode(do(message), keep)}
            except Closed:
                raise
            except BaseException as e:  # SystemExit and KeyboardInterrupt are answers like any other
                answer = {"error": type(e).__name__, "text": _text(e)}
            try:
                send(channel, answer)
            except TooLarge as e:
                send(channel, {"error": "TooLarge", "text": str(e)})
        except Closed:
            return


def _text(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return ""
