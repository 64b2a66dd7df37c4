"""What goes into the sandbox and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SLACK", "Outcome", "Program"]

SLACK = 4.0  # seconds that a checker may take beyond its candidate


@dataclass(frozen=True)
class Program:
    """A candidate and the tests that it has to pass.

    Attributes:
        code: Source that a model wrote.
        tests: Trusted sources, run in order in one namespace; one that raises fails the candidate.
        names: What of the candidate the tests use (functions, classes).
        setup: Trusted source run before; `names` win over what it defines.
        cpu_seconds: CPU time of the candidate; three times as much of wall-clock time.
    """

    code: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    setup: str = ""
    cpu_seconds: int = 2

    @property
    def seconds(self) -> float:
        """Wall-clock time of the candidate: cores are shared, and sleep costs no CPU time."""
        return 3.0 * self.cpu_seconds


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        outcome: `passed`, `failed`, `timeout`, `memory`, `crashed`, `output_limit`, or `infra_error`: then nothing is
            known about the program.
        reason: One short phrase.
    """

    outcome: str
    reason: str
