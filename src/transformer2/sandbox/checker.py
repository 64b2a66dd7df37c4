"""The trusted side: runs a data set's tests against proxies of what the candidate defined.

The tests, and with them the expected values, live in this process and never enter the candidate's. A proxy sends
arguments over and gets plain data back (`values.py`), so no exit code, printed marker, patched builtin or object with
an equality of its own says anything about the verdict. The tests come from a data set, not from us, so this process has
the same isolation layers and limits (`jail.confine`).
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from transformer2.sandbox.program import Outcome, Program
from transformer2.sandbox.values import Closed, TooLarge, decode, encode, receive, send

__all__ = ["CandidateError", "check"]


class CandidateError(Exception):
    """What the candidate raised, as the tests see it: also an instance of the built-in exception of that name."""


class BrokenTest(Exception):
    """A test asks for what cannot be sent: the data set's fault, not the candidate's."""


class Candidate:
    """The other end of the channel."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.ended: Exception | None = None  # why there will be no more answers, also where a test swallowed it

    def ask(
        self,
        do: str,
        on: int | str | None,
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Send, wait, and give back what the candidate's side answered.

        Raises:
            CandidateError: It raised.
            BrokenTest: The arguments cannot be sent.
            Closed: It is gone.
            TooLarge: The answer is.
            Unreadable: The answer is not plain data.
        """
        try:
            try:
                forms = [encode(value, _handle_of) for value in arguments]
                more = {name: encode(value, _handle_of) for name, value in named.items()}
                send(self.channel, {"do": do, "on": on, "arguments": forms, "named": more})
            except TooLarge as e:
                raise BrokenTest(f"a test's own arguments are too large ({e})") from e
            answer = receive(self.channel)
            if "ok" in answer:
                return decode(answer["ok"], lambda target, kind: Proxy(self, target, kind))
            names = [str(name)[:80] for name in list(answer["error"])[:40]]
            text = str(answer.get("text"))[:200]
            if names == ["TooLarge"]:
                raise TooLarge(text)
            if "MemoryError" in names:
                raise MemoryError
            raise _raised(names, text)
        except CandidateError:
            raise
        except Exception as e:  # whatever a candidate's answer does to its reader, it is not a fault of ours
            self.ended = e
            raise


class Proxy:
    """Something that the candidate defined or made: it can be called, and its attributes read and set.

    It is equal to nothing but itself and has no order, so no comparison holds by accident.
    """

    def __init__(self, candidate: Candidate, target: int | str, kind: str) -> None:
        self.__dict__.update(_candidate=candidate, _target=target, _kind=kind)

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        return self._candidate.ask("call", self._target, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what Python looks for by itself
        return self._candidate.ask("get", self._target, [name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.ask("set", self._target, [name, value])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._candidate.ask("list", self._target))

    def __next__(self) -> Any:
        return self._candidate.ask("next", self._target)

    def __getitem__(self, key: Any) -> Any:
        return self._candidate.ask("item", self._target, [key])

    def __len__(self) -> int:
        length = self._candidate.ask("len", self._target)
        return length if type(length) is int else 0

    def __bool__(self) -> bool:
        return self._candidate.ask("bool", self._target) is True

    def __repr__(self) -> str:
        return f"<{self._kind} of the candidate>"


def _handle_of(value: Any) -> tuple[int | str, str]:
    if isinstance(value, Proxy):
        return value._target, value._kind
    raise BrokenTest(f"a test passes a {type(value).__name__}, which is not plain data")


def _raised(names: Sequence[str], text: str) -> CandidateError:
    """What the candidate raised, such that `except ValueError` in a test catches it, and `str(error)` is what it said.

    Args:
        names: Of its class and those that it is derived from; the first built-in one is what tests see.
        text: What it says.
    """
    builtin = next((c for name in names if isinstance(c := getattr(builtins, name, None), type)), Exception)
    kinds: list[type] = [CandidateError, builtin] if issubclass(builtin, Exception) else [CandidateError]
    methods: dict[str, Any] = {"__init__": lambda *_: None, "__str__": lambda _: text}  # some want arguments
    with contextlib.suppress(TypeError):
        return cast(CandidateError, type(names[0], tuple(kinds), methods)())
    return cast(CandidateError, type(names[0], (CandidateError,), methods)())  # an ExceptionGroup


def check(channel: int, program: Program) -> Outcome:
    """What its tests say of a program, or `lost`: the process at the other end of `channel` has ended."""
    candidate = Candidate(channel)
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        tests = [compile(source, "<test>", "exec", dont_inherit=True) for source in program.tests]
        exec(compile(program.setup, "<setup>", "exec", dont_inherit=True), space)
    except Exception as e:  # whatever it is, the data set is broken and not the candidate
        return Outcome("infra_error", f"the tests cannot be prepared ({type(e).__name__}: {e})")
    try:
        candidate.ask("run", None, [program.code])
    except Exception as e:
        return Outcome("failed", _told(e)) if candidate.ended is None else _ended(candidate.ended)
    space |= {name: Proxy(candidate, name, "function") for name in program.names}
    for number, test in enumerate(tests, 1):
        raised = None
        try:
            exec(test, space)
        except BaseException as e:  # tests raise what they like, also SystemExit
            raised = e
        if candidate.ended is not None:
            return _ended(candidate.ended)
        if isinstance(raised, NameError) and not isinstance(raised, CandidateError):
            return Outcome("infra_error", f"test {number} uses what nobody defines ({_text(raised)})")
        if raised is not None:
            return Outcome("failed", f"test {number} of {len(tests)}: {_told(raised)}")
    return Outcome("passed", f"{len(tests)} of {len(tests)} tests")


def _ended(error: Exception) -> Outcome:
    match error:
        case BrokenTest():
            return Outcome("infra_error", str(error))
        case Closed():
            return Outcome("lost", "the program ended")
        case TooLarge():
            return Outcome("output_limit", f"the answer is too large ({error})")
        case MemoryError():
            return Outcome("memory", "out of memory")
    return Outcome("failed", f"the answer is unreadable ({type(error).__name__})")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}".removesuffix(": ")


def _text(error: BaseException) -> str:
    """What an exception says; its arguments may be what a candidate sent."""
    try:
        return str(error)[:200]
    except Exception:
        return ""
