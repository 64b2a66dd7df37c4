"""Requests under way: the first pass of those that need one, the second pass of all, in one running batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from transformer2.adaptive.experts import LoadedExperts
from transformer2.adaptive.first_pass import FirstPass
from transformer2.adaptive.request import Job, Selection
from transformer2.rollout.continuous import ContinuousBatch, Row

__all__ = ["JobQueue"]

Decision = tuple[Selection, Tensor | None]  # what answers, and its weights (L, K + 1) where those differ by matrix


class JobQueue:
    """Jobs, in whatever state; `step` is for one thread at a time, `add` for any.

    Args:
        batch: Where their rows run.
        experts: The z of what answers.
        decide: What answers a job, where no first pass is needed.
        first_pass: Among the experts that are loaded now.
    """

    def __init__(
        self,
        batch: ContinuousBatch,
        experts: LoadedExperts,
        decide: Callable[[Job], Decision | None],
        first_pass: Callable[[], FirstPass],
    ) -> None:
        self.batch, self.experts, self.decide, self.first_pass = batch, experts, decide, first_pass
        self._new, self._jobs = deque[Job](), list[Job]()

    def add(self, job: Job) -> None:
        """Let a job begin with the next step."""
        self._new.append(job)

    @property
    def is_idle(self) -> bool:
        """Whether no job is under way."""
        return not self._new and not self._jobs

    def step(self) -> list[Job]:
        """Draw one token for every job; those that were under way or have ended in this step."""
        new = [self._new.popleft() for _ in range(len(self._new))]
        self._jobs += new
        asking: list[Job] = []
        for job in new:
            if not job.cancelled:
                with _error_of(job):  # an expert may have been removed since the request came
                    if (decision := self.decide(job)) is None:
                        asking.append(job)
                    else:
                        self._answer(job, *decision)
        if asking:
            self._ask(asking)
        self.batch.step()
        met = self._jobs
        for job in met:
            row = job.row
            if job.error is not None or (row is not None and row.finish_reason is None):
                continue
            if row is None or job.choice is not None or row.finish_reason not in ("stop", "length"):
                job.finish()
                continue
            with _error_of(job):  # the first pass has written; the experts or the strategy may have gone meanwhile
                self._answer(job, *(self.decide(job) or (self.first_pass().read(row.text), None)))
        self._jobs = [job for job in met if not job.is_done]
        return met

    def finish_rows(self) -> None:
        """Run the rows that are under way to their ends; jobs that have not begun wait."""
        while not self.batch.is_idle:
            self.batch.step()

    def _ask(self, jobs: Sequence[Job]) -> None:
        """The first pass of several jobs at once; where it fails, of each alone, so that none has another's error."""
        try:
            begun = self.first_pass().begin([job.chat.request for job in jobs])
        except Exception as e:
            if len(jobs) == 1:
                jobs[0].error = e.with_traceback(None)  # whose frames hold tensors
            else:
                for job in jobs:
                    self._ask([job])
            return
        for job, found in zip(jobs, begun, strict=True):
            with _error_of(job):
                if isinstance(found, Row):
                    job.run(found)
                    self.batch.submit(found)
                else:
                    self._answer(job, found)

    def _answer(self, job: Job, choice: Selection, weights: Tensor | None = None) -> None:
        """The second pass."""
        deltas = self.experts.deltas(self.experts.row(choice.weights) if weights is None else weights)
        row = Row(job.prompt, deltas, job.sampling, job.ending, job.seed, job.top_logprobs or 0)
        job.run(row, choice)
        self.batch.submit(row)


@contextmanager
def _error_of(job: Job) -> Iterator[None]:
    """What goes wrong with one job is no other's, and ends no step."""
    try:
        yield
    except Exception as e:
        job.error = e.with_traceback(None)  # whose frames hold tensors
