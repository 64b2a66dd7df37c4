"""The trusted side: runs a data set's tests against stand-ins for what the candidate defined.

The tests, and with them the expected values, live in this process and never enter the candidate's. A stand-in sends
arguments over and gets plain data back (`values.py`), so no exit code, printed marker, patched builtin or object with
an equality of its own says anything about the verdict. The tests come from a data set, not from us, so this process has
the same walls and limits around it (`jail.confine`).
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from transformer2.verifiers.code.values import Closed, TooLarge, decode, encode, receive, send

__all__ = ["CandidateError", "check"]


class CandidateError(Exception):
    """What the candidate raised, as the tests see it: also an instance of the built-in exception of that name."""


class BrokenTest(Exception):
    """A test asks for what cannot be sent: the data set's fault, not the candidate's."""


class Candidate:
    """The other end of the channel.

    Args:
        channel: Descriptor.
    """

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.ended: Exception | None = None  # why there will be no more answers, also where a test swallowed it

    def form(self, value: Any) -> Any:
        """A test's value as it is sent.

        Raises:
            BrokenTest: It cannot be.
        """
        try:
            return encode(value, _handle_of)
        except (BrokenTest, TooLarge) as e:
            self.ended = BrokenTest(str(e))
            raise self.ended from e

    def ask(self, message: dict[str, Any]) -> Any:
        """Send, wait, and give back what the candidate's side answered.

        Raises:
            CandidateError: It raised.
            Closed: It is gone.
            TooLarge: The answer is.
            Unreadable: The answer is no plain data.
        """
        try:
            return self._answer(message)
        except CandidateError:
            raise
        except Exception as e:  # whatever a candidate's answer does to its reader, it is no fault of ours
            self.ended = e
            raise

    def _answer(self, message: dict[str, Any]) -> Any:
        try:
            send(self.channel, message)
        except TooLarge as e:
            raise BrokenTest(f"a test's own arguments are too large ({e})") from e
        answer = receive(self.channel)
        if "ok" in answer:
            return decode(answer["ok"], lambda number, name: Standin(self, number, name))
        error, text = str(answer.get("error"))[:80], str(answer.get("text"))[:200]
        if error == "TooLarge":
            raise TooLarge(text)
        if error == "MemoryError":
            raise MemoryError
        raise _raised(error, text)


class Standin:
    """Something that the candidate defined or made: it can be called, and its attributes read and set.

    It is equal to nothing but itself and has no order, so no comparison holds by accident.
    """

    def __init__(self, candidate: Candidate, target: int | str, kind: str) -> None:
        self.__dict__.update(_candidate=candidate, _target=target, _kind=kind)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        forms = [self._candidate.form(a) for a in arguments]
        names = {k: self._candidate.form(a) for k, a in named.items()}
        return self._candidate.ask({"do": "call", "on": self._target, "arguments": forms, "named": names})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what Python looks for by itself
        return self._candidate.ask({"do": "get", "on": self._target, "name": name})

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.ask({"do": "set", "on": self._target, "name": name, "value": self._candidate.form(value)})

    def __iter__(self) -> Iterator[Any]:
        return iter(self._candidate.ask({"do": "list", "on": self._target}))

    def __next__(self) -> Any:
        return self._candidate.ask({"do": "next", "on": self._target})

    def __getitem__(self, key: Any) -> Any:
        return self._candidate.ask({"do": "item", "on": self._target, "value": self._candidate.form(key)})

    def __len__(self) -> int:
        length = self._candidate.ask({"do": "len", "on": self._target})
        return length if type(length) is int else 0

    def __bool__(self) -> bool:
        return self._candidate.ask({"do": "bool", "on": self._target}) is True

    def __repr__(self) -> str:
        return f"<{self._kind} of the candidate>"


def _handle_of(value: Any) -> dict[str, Any]:
    if isinstance(value, Standin):
        return {"h": value._target, "n": value._kind}
    raise BrokenTest(f"a test passes a {type(value).__name__}, which is no plain data")


def _raised(name: str, text: str) -> CandidateError:
    """What the candidate raised, such that `except ValueError` in a test catches it."""
    builtin = getattr(builtins, name, None)
    if isinstance(builtin, type) and issubclass(builtin, Exception):
        with contextlib.suppress(TypeError):  # a few want arguments of their own
            error: CandidateError = type(name, (CandidateError, builtin), {})(f"{name}: {text}")
            return error
    return CandidateError(f"{name}: {text}")


def check(channel: int, code: str, names: Sequence[str], setup: str, tests: Sequence[str]) -> dict[str, str]:
    """Run the tests.

    Args:
        channel: Descriptor of the candidate's process, which has not read its code yet.
        code: The candidate's source.
        names: What of it the tests use.
        setup: Trusted source that the tests need; run first, so that `names` win over what it defines.
        tests: Trusted sources, run in order in one namespace; one that raises fails the candidate.

    Returns:
        `outcome` (passed, failed, memory, output_limit, lost or infra_error) and `reason`.
    """
    candidate = Candidate(channel)
    try:
        space: dict[str, Any] = {"__name__": "tests"}
        programs = [compile(source, "<test>", "exec", dont_inherit=True) for source in tests]
        exec(compile(setup, "<setup>", "exec", dont_inherit=True), space)
    except Exception as e:  # whatever it is, the data set is broken and not the candidate
        return {"outcome": "infra_error", "reason": f"the tests cannot be prepared ({type(e).__name__}: {e})"}
    try:
        candidate.ask({"code": code})
    except CandidateError as e:
        return {"outcome": "failed", "reason": str(e)}
    except Exception as e:
        return _ended(e)
    space |= {name: Standin(candidate, name, "function") for name in names}
    for number, program in enumerate(programs, 1):
        try:
            exec(program, space)
        except BaseException as e:  # tests raise what they like, also SystemExit
            if candidate.ended is not None:
                return _ended(candidate.ended)
            if isinstance(e, NameError) and not isinstance(e, CandidateError):
                return {"outcome": "infra_error", "reason": f"test {number} uses what nobody defines ({_text(e)})"}
            said = _text(e) if isinstance(e, CandidateError) else f"{type(e).__name__}: {_text(e)}".removesuffix(": ")
            return {"outcome": "failed", "reason": f"test {number} of {len(tests)}: {said}"}
        if candidate.ended is not None:
            return _ended(candidate.ended)
    return {"outcome": "passed", "reason": f"{len(tests)} of {len(tests)} tests"}


def _ended(error: Exception) -> dict[str, str]:
    match error:
        case BrokenTest():
            return {"outcome": "infra_error", "reason": str(error)}
        case Closed():
            return {"outcome": "lost", "reason": "the program ended"}
        case TooLarge():
            return {"outcome": "output_limit", "reason": f"the answer is too large ({error})"}
        case MemoryError():
            return {"outcome": "memory", "reason": "out of memory"}
    return {"outcome": "failed", "reason": f"the answer is unreadable ({type(error).__name__})"}


def _text(error: BaseException) -> str:
    """What an exception says; its arguments may be what a candidate sent."""
    try:
        return str(error)[:200]
    except Exception:
        return ""
