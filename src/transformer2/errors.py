"""Typed errors a user can act on: one line that names the thing and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input or an impossible request. The command line prints it as one line and exits with code 2.

    Args:
        problem: What is wrong; the whole message, where nobody does anything else about it.
        remedy: What to do; it follows the problem in the message.

    Attributes:
        problem: For who has another remedy.
    """

    def __init__(self, problem: object = "", remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = str(problem)


class ConfigError(UserError, ValueError):
    """A config file, key or value that cannot be used."""


class DataError(UserError, ValueError):
    """A data set, row or field that cannot be used."""


class ExpertError(UserError, ValueError):
    """An expert folder that is damaged, foreign, or does not fit the model."""


class UnknownExpertError(UserError, LookupError):
    """An expert that is not there."""


class LengthError(UserError, ValueError):
    """A prompt, with the answer it may have, that is longer than the model reads."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is damaged, foreign, does not fit the run, or cannot be written."""


class BasisError(UserError, ValueError):
    """A basis that cannot be computed or read."""


class SandboxError(UserError, RuntimeError):
    """Model-written code cannot be run safely on this machine."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    """`; did you mean 'x'?` with the known name nearest to a wrong one; empty when none is that near (0 to 1)."""
    words = {word.lower(): word for word in known}
    near = get_close_matches(name[:200].lower(), words, n=1, cutoff=cutoff)  # a longer one may take minutes
    return f"; did you mean {words[near[0]]!r}?" if near else ""


def shown(text: object, limit: int = 200) -> str:
    """Untrusted text for a terminal: control and escape characters as `\\x1b`, and no longer than `limit`."""
    whole = str(text)
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in whole[:limit])
    return f"{safe}... ({len(whole)} characters)" if len(whole) > limit else safe


def one_line(error: Exception, limit: int = 300) -> str:
    """What another library's exception says, for a message of ours."""
    return shown(" ".join(str(error).split()) or type(error).__name__, limit)
