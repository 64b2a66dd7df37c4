"""The untrusted side: runs a candidate's code and answers questions about what it defined. Nothing here is a safeguard.

The candidate shares this interpreter and can rewrite every line of it; all it can gain is to send other data. Isolation
is the process's (`jail.py`), and the verdict is made elsewhere (`checker.py`).

    -> {"layers": {layer: why missing}}                    sent before anything is read
    <- {"do": "run", "arguments": [source], ...}           -> {"ok": value} or {"error": [type, its bases], "text": ...}
    <- {"do": one of OPERATIONS, "on": name or handle, "arguments": [...], "named": {...}}    -> the same
"""

from __future__ import annotations

import itertools
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from transformer2.sandbox.values import Closed, TooLarge, decode, encode, receive, send

__all__ = ["serve"]

MODULE = "candidate"  # not __main__: what a script does when started is not part of what it defines
MAX_ITEMS = 100_000  # of an iterator that a test wants to see whole
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": operator.call,
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "next": next,
    "list": lambda target: list(itertools.islice(target, MAX_ITEMS)),
    "bool": bool,
    "len": len,
}


def serve(channel: int, missing: dict[str, str]) -> None:
    """Answer on `channel` until the other side closes it."""
    send(channel, {"layers": missing})
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    kept: dict[int, Any] = {}

    def keep(value: Any) -> tuple[int, str]:
        kept[id(value)] = value
        return id(value), str(type(value).__name__)

    def find(target: Any, _: str = "") -> Any:
        return kept[target] if isinstance(target, int) else module.__dict__[target]

    def do(message: dict[str, Any]) -> Any:
        arguments = [decode(form, find) for form in message["arguments"]]
        if message["do"] == "run":
            exec(compile(arguments[0], "<candidate>", "exec", dont_inherit=True), module.__dict__)
            return None
        named = {name: decode(form, find) for name, form in message["named"].items()}
        return OPERATIONS[message["do"]](find(message["on"]), *arguments, **named)

    while True:
        try:
            message = receive(channel)
            try:
                answer = {"ok": encode(do(message), keep)}
            except BaseException as e:  # SystemExit and KeyboardInterrupt are answers like any other
                answer = {"error": [kind.__name__ for kind in type(e).__mro__], "text": _text(e)}
            try:
                send(channel, answer)
            except TooLarge as e:
                send(channel, {"error": ["TooLarge"], "text": str(e)})
        except Closed:
            return


def _text(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return ""
