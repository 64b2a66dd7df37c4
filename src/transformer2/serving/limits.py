"""What a server takes on."""

from __future__ import annotations

from dataclasses import dataclass

from transformer2.errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a server takes on; what is more is refused.

    Attributes:
        body: Bytes of a request.
        tokens: Budget of an answer; None is what the model has room for.
        queue: Answers that wait for a row of the running batch.
        seconds: From a request to the end of its answer.
        answers: Answers to one request (`n` x prompts).
        pixels: Of the different pictures of one request together; decoding takes seconds and memory for each million.
    """

    body: int = 4 << 20
    tokens: int | None = None
    queue: int = 256
    seconds: float = 600.0
    answers: int = 128
    pixels: int = 25_000_000

    def __post_init__(self) -> None:
        """Refuse values that would let nothing through."""
        for name, value in vars(self).items():
            if value is not None and not value >= (0 if name == "queue" else 1):
                raise ConfigError(f"the limit {name} = {value} lets nothing through; raise it")
