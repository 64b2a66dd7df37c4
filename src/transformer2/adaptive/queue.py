"""Requests under way: the first pass of those that need one, the second pass of all, in one running batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from transformer2.adaptive.experts import LoadedExperts
from transformer2.adaptive.first_pass import FirstPass
from transformer2.adaptive.request import Job, Selection
from transformer2.errors import UserError
from transformer2.rollout.continuous import ContinuousBatch, Row

__all__ = ["JobQueue"]

Decision = tuple[Selection, Tensor]  # what answers, and its weights


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
        try:
            self._begin([job for job in new if not job.cancelled])
        except Exception as e:
            for job in new:
                job.error = job.error if job.row or job.dispatch else job.error or e
        self.batch.step()
        met = self._jobs
        for job in met:
            if job.row is None and job.dispatch is not None and job.dispatch.finish_reason in ("stop", "length"):
                self._read(job, job.dispatch.text)
            row = job.dispatch if job.row is None else job.row
            if job.error is None and (row is None or row.finish_reason is not None):
                job.finish()
        self._jobs = [job for job in met if not job.is_done]
        return met

    def finish_rows(self) -> None:
        """Run the rows that are under way to their ends; jobs that have not begun wait."""
        while not self.batch.is_idle:
            self.batch.step()

    def _begin(self, jobs: Sequence[Job]) -> None:
        """The second pass of jobs of which it is known what answers, the first of the others."""
        asking: list[Job] = []
        for job in jobs:
            try:
                decision = self.decide(job)
            except UserError as e:  # an expert that was removed since the request came
                job.error = e
                continue
            if decision is None:
                asking.append(job)
            else:
                self._second_pass(job, *decision)
        if asking:
            self._first_pass(asking)

    def _first_pass(self, jobs: Sequence[Job]) -> None:
        """The first pass of several jobs at once; where it fails, of each alone, so that none has another's error."""
        first_pass, requests = self.first_pass(), [job.chat.request for job in jobs]
        try:
            rows = first_pass.rows(requests) if first_pass.writes else None
            choices = first_pass.score(requests) if rows is None else []
        except Exception as e:
            if len(jobs) == 1:
                jobs[0].error = e.with_traceback(None)  # whose frames hold tensors
                return
            for job in jobs:
                self._first_pass([job])
            return
        if rows is None:
            for job, choice in zip(jobs, choices, strict=True):
                self._second_pass(job, *self._weighted(choice))
        else:
            for job, row in zip(jobs, rows, strict=True):
                job.dispatch = row
                self.batch.submit(row)

    def _read(self, job: Job, text: str) -> None:
        """The second pass of a job whose first has written; what goes wrong is its own, or no step would end again."""
        try:
            # Asked anew: the experts or the strategy may have gone meanwhile.
            decision = self.decide(job) or self._weighted(self.first_pass().read(text))
            self._second_pass(job, *decision)
        except Exception as e:
            job.error = e

    def _weighted(self, choice: Selection) -> Decision:
        return choice, self.experts.row(choice.weights)

    def _second_pass(self, job: Job, choice: Selection, weights: Tensor) -> None:
        """Let what was chosen answer."""
        deltas = self.experts.deltas(weights)
        row = Row(job.prompt, deltas, job.sampling, job.ending, job.seed, job.top_logprobs or 0)
        job.choose(choice, row)
        self.batch.submit(row)
