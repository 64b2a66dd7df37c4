"""Plain data between a candidate and its checker: tagged JSON, in frames of a bounded size. Never pickle.

Everything a candidate sends is untrusted. What comes out of `decode` is built here from exact built-in types, so it
compares, hashes and prints as they do: no object of a candidate's making, with its own idea of equality, exists in the
checker. What is no plain data stays where it is and is spoken of by a handle.

    None True False "text"            themselves
    {"i": hex} {"f": hex} {"c": [re, im]} {"b": base64}
    {"l": [...]} {"t": [...]} {"s": [...]} {"z": [...]} {"d": [[key, value], ...]}     list tuple set frozenset dict
    {"k": [...]} {"e": [...]} {"x": [...]}    the keys of a dict, its items; a deque
    {"r": [start, stop, step]} {"q": [numerator, denominator]} {"n": text}    range Fraction Decimal
    {"y": name}                       a built-in type
    {"h": number or name, "n": type name}    a handle
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

__all__ = ["MAX_FRAME", "Closed", "TooLarge", "Unreadable", "decode", "encode", "receive", "send"]

MAX_FRAME = 1 << 20  # bytes of one message
MAX_DEPTH = 64  # levels of containers in one value
_SEQUENCES: dict[str, type] = {
    "l": list,
    "t": tuple,
    "s": set,
    "z": frozenset,
    "x": deque,
    "k": type({}.keys()),
    "e": type({}.items()),
}
_TYPES = {t.__name__: t for t in (bool, bytes, complex, dict, float, int, list, object, set, str, tuple)}
_LENGTH = struct.Struct("<I")


class Closed(Exception):
    """The other side is gone."""


class TooLarge(Exception):
    """A message is larger than `MAX_FRAME`, or nested deeper than `MAX_DEPTH`."""


class Unreadable(Exception):
    """A message is not of this form."""


def encode(value: Any, handle: Callable[[Any], dict[str, Any]], depth: int = MAX_DEPTH) -> Any:
    """A value as JSON can hold it.

    Args:
        value: Anything. Subclasses of built-in types travel as the built-in type.
        handle: Gives the form of what is no plain data.
        depth: Levels of containers that are left.

    Raises:
        TooLarge: Nested too deeply (or within itself).
    """
    if value is None or value is True or value is False:
        return value
    if depth == 0:
        raise TooLarge("nested too deeply")

    def part(v: Any) -> Any:
        return encode(v, handle, depth - 1)

    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"i": int.__format__(value, "x")}
    if isinstance(value, float):
        return {"f": float.hex(value)}
    if isinstance(value, complex):
        return {"c": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"b": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        return {"d": [[part(k), part(v)] for k, v in dict.items(value)]}
    if isinstance(value, range):
        return {"r": [part(n) for n in (value.start, value.stop, value.step)]}
    if isinstance(value, Fraction):
        return {"q": [part(value.numerator), part(value.denominator)]}
    if isinstance(value, Decimal):
        return {"n": Decimal.__str__(value)}
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {tag: [part(v) for v in kind.__iter__(value)]}  # type: ignore[attr-defined]  # all four iterate
    if isinstance(value, type) and _TYPES.get(name := type.__dict__["__name__"].__get__(value)) is value:
        return {"y": name}
    return handle(value)


def decode(form: Any, handle: Callable[[int | str, str], Any], depth: int = MAX_DEPTH) -> Any:
    """The value of a form, built from built-in types only.

    Args:
        form: What `json.loads` read.
        handle: Makes a handle from its number, or name, and its type's name.
        depth: Levels of containers that are left.

    Raises:
        Unreadable: Not such a form.
        TooLarge: Nested too deeply.
    """
    if form is None or form is True or form is False or type(form) is str:
        return form
    if depth == 0:
        raise TooLarge("nested too deeply")
    if type(form) is not dict or not form:
        raise Unreadable("not a tagged value")
    tag = next(iter(form))
    content = form[tag]
    try:
        match tag:
            case "i":
                return int(content, 16)
            case "f":
                return float.fromhex(content)
            case "c":
                return complex(*map(float.fromhex, content))
            case "b":
                return base64.b64decode(content)
            case "d":
                return {decode(k, handle, depth - 1): decode(v, handle, depth - 1) for k, v in content}
            case "k":
                return dict.fromkeys(decode(v, handle, depth - 1) for v in content).keys()
            case "e":
                return dict(decode(v, handle, depth - 1) for v in content).items()
            case "r":
                return range(*(decode(v, handle, depth - 1) for v in content))
            case "q":
                return Fraction(*(decode(v, handle, depth - 1) for v in content))
            case "n":
                return Decimal(content)
            case "y":
                return _TYPES[content]
            case "h":
                return handle(content if type(content) is str else int(content), str(form["n"]))
        return _SEQUENCES[tag](decode(v, handle, depth - 1) for v in content)
    except (TypeError, ValueError, KeyError, ArithmeticError) as e:  # unhashable members and malformed content alike
        raise Unreadable(f"malformed {tag!r}") from e


def send(channel: int, message: dict[str, Any]) -> None:
    """One message, to a descriptor.

    Raises:
        TooLarge: The message exceeds `MAX_FRAME`.
        Closed: Nobody reads any more.
    """
    frame = json.dumps(message).encode("ascii")
    if len(frame) > MAX_FRAME:
        raise TooLarge(f"{len(frame)} bytes")
    try:
        _write(channel, _LENGTH.pack(len(frame)) + frame)
    except OSError as e:
        raise Closed from e


def receive(channel: int) -> dict[str, Any]:
    """The next message of a descriptor.

    Raises:
        TooLarge: It exceeds `MAX_FRAME` or nests too deeply.
        Unreadable: It is no JSON object.
        Closed: There is none, or only a part of one.
    """
    (length,) = _LENGTH.unpack(_read(channel, _LENGTH.size))
    if length > MAX_FRAME:
        raise TooLarge(f"{length} bytes")
    try:
        message = json.loads(_read(channel, length))
    except ValueError as e:
        raise Unreadable("not JSON") from e
    except RecursionError as e:
        raise TooLarge("nested too deeply") from e
    if type(message) is not dict:
        raise Unreadable("not a JSON object")
    return message


# read(2) and write(2), not recv and send: the seccomp filter knows no socket calls.
def _read(channel: int, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = os.read(channel, size)
        except OSError as e:
            raise Closed from e
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(channel: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(channel, view) :]
