"""Plain data between a candidate and its checker: tagged JSON, in frames of a bounded size. Never pickle.

Everything a candidate sends is untrusted. What comes out of `decode` is built here from exact built-in types, so it
compares, hashes and prints as they do: no object of a candidate's making, with its own idea of equality, exists in the
checker. What is not plain data stays where it is and is referred to by a handle.

    None True False "text"                          themselves
    {"i": hex} {"f": hex} {"b": base64} {"y": name}    an int, a float, bytes, a built-in type
    {"l": [part, ...]} {"d": [key, value, ...]} ...    what is made of parts: `_PARTS` holds the kinds
    {"h": number or name, "n": type name}              a handle
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
from itertools import chain
from typing import Any

__all__ = ["MAX_FRAME", "Closed", "TooLarge", "Unreadable", "decode", "encode", "receive", "send"]

MAX_FRAME = 1 << 20  # bytes of one message
MAX_DEPTH = 64  # levels of containers in one value
_TYPES = {t.__name__: t for t in (bool, bytes, complex, dict, float, int, list, object, set, str, tuple)}
_LENGTH = struct.Struct("<I")
# tag: type, value -> parts, parts -> value. Methods of the types themselves: a subclass may have its own.
_PARTS: dict[str, tuple[type, Callable[[Any], Any], Callable[[list[Any]], Any]]] = {
    "l": (list, list.__iter__, list),
    "t": (tuple, tuple.__iter__, tuple),
    "s": (set, set.__iter__, set),
    "z": (frozenset, frozenset.__iter__, frozenset),
    "x": (deque, deque.__iter__, deque),
    "d": (dict, lambda v: chain.from_iterable(dict.items(v)), lambda p: _paired(p)),
    "k": (type({}.keys()), iter, lambda p: dict.fromkeys(p).keys()),
    "e": (type({}.items()), chain.from_iterable, lambda p: _paired(p).items()),
    "r": (range, lambda v: (v.start, v.stop, v.step), lambda p: range(*p)),
    "c": (complex, lambda v: (v.real, v.imag), lambda p: complex(*p)),
    "q": (Fraction, lambda v: (v.numerator, v.denominator), lambda p: Fraction(*p)),
    "n": (Decimal, lambda v: (Decimal.__str__(v),), lambda p: Decimal(*p)),
}


class Closed(Exception):
    """The other side is gone."""


class TooLarge(Exception):
    """A message is larger than `MAX_FRAME`, or nested deeper than `MAX_DEPTH`."""


class Unreadable(Exception):
    """A message is not of this form."""


def encode(value: Any, handle: Callable[[Any], tuple[int | str, str]], depth: int = MAX_DEPTH) -> Any:
    """A value as JSON can hold it.

    Args:
        value: Anything. Subclasses of built-in types travel as the built-in type.
        handle: Number or name, and type's name, of what is not plain data.
        depth: Levels of containers that are left.

    Raises:
        TooLarge: Nested too deeply (or within itself).
    """
    if value is None or value is True or value is False:
        return value
    if depth == 0:
        raise TooLarge("nested too deeply")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"i": int.__format__(value, "x")}
    if isinstance(value, float):
        return {"f": float.hex(value)}
    if isinstance(value, bytes | bytearray):
        return {"b": base64.b64encode(value).decode("ascii")}
    for tag, (kind, parts, _) in _PARTS.items():
        if isinstance(value, kind):
            return {tag: [encode(part, handle, depth - 1) for part in parts(value)]}
    if isinstance(value, type) and _TYPES.get(name := type.__dict__["__name__"].__get__(value)) is value:
        return {"y": name}
    target, name = handle(value)
    return {"h": target, "n": name}


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
    tag, content = next(iter(form.items()))
    try:
        match tag:
            case "i":
                return int(content, 16)
            case "f":
                return float.fromhex(content)
            case "b":
                return base64.b64decode(content)
            case "y":
                return _TYPES[content]
            case "h":
                return handle(content if type(content) is str else int(content), str(form["n"]))
        return _PARTS[tag][2]([decode(part, handle, depth - 1) for part in content])
    except (TypeError, ValueError, KeyError, ArithmeticError) as e:  # unhashable members and malformed content alike
        raise Unreadable(f"malformed {tag!r}") from e


def _paired(parts: list[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def send(channel: int, message: dict[str, Any]) -> None:
    """One message, to a descriptor.

    Raises:
        TooLarge: The message exceeds `MAX_FRAME`.
        Closed: Nobody reads any more.
    """
    frame = json.dumps(message).encode("ascii")
    if len(frame) > MAX_FRAME:
        raise TooLarge(f"{len(frame)} bytes")
    data = memoryview(_LENGTH.pack(len(frame)) + frame)
    try:
        while data:  # write(2) and read(2), not send and recv: the seccomp filter allows few socket calls
            data = data[os.write(channel, data) :]
    except OSError as e:
        raise Closed from e


def receive(channel: int) -> dict[str, Any]:
    """The next message of a descriptor.

    Raises:
        TooLarge: It exceeds `MAX_FRAME` or nests too deeply.
        Unreadable: It is not a JSON object.
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


def _read(channel: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            part = os.read(channel, size - len(data))
        except OSError as e:
            raise Closed from e
        if not part:
            raise Closed
        data += part
    return data
