"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from transformer2.adaptive.request import Job
from transformer2.serving.engine import Engine
from transformer2.serving.faults import Fault

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server.

    Args:
        engine: Whose rows are counted.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()

        def of(kind: type, name: str, text: str, *labels: str, **options: object):  # type: ignore[no-untyped-def]
            return kind(name, text, labels, namespace="transformer2", registry=self.registry, **options)

        self.answers = of(Counter, "answers", "Answers by what answered and how they ended", "choice", "finish_reason")
        self.faults = of(Counter, "faults", "Requests that were refused or failed", "status")
        self.tokens = of(Counter, "tokens", "Tokens of prompts and of completions", "kind")
        self.first = of(Histogram, "first_token_seconds", "To the first piece of a stream", buckets=SECONDS)
        self.passes = of(Histogram, "pass_seconds", "Of the first and second pass", "name", buckets=SECONDS)
        of(Gauge, "rows", "Rows of the running batch").set_function(lambda: engine.model.rows_under_way)
        of(Gauge, "requested", "Answers under way or waiting").set_function(lambda: engine.answers)
        of(Gauge, "steps", "Steps of the running batch, a token for every row").set_function(lambda: engine.steps)

    def count(self, job: Job) -> None:
        """An answer has been given."""
        answer = job.result()
        self.answers.labels(answer.choice.name, answer.finish_reason).inc()
        self.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.tokens.labels("completion").inc(answer.completion_tokens)
        for name, seconds in answer.seconds.items():
            self.passes.labels(name).observe(seconds)

    def fault(self, fault: Fault) -> None:
        """A request was refused, or failed."""
        self.faults.labels(str(fault.status)).inc()

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return bytes(generate_latest(self.registry))
