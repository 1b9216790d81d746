"""Admission of requests, and one kernel call for those that wait at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.serving.models import ServedModel

MAX_ENTRIES = 2**22  # non-zeros of one kernel call: bounds the copy that joins requests
INLINE_WORK = 2**17  # multiply-adds, some 50 µs: less than a hand-over to a thread and back
RETRY_AFTER_SECONDS = 1
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    model: ServedModel
    batch: CsrBatch
    answer: asyncio.Future[Scores]


class Batcher:
    """Scores the requests that wait in one event loop together.

    Small batches are scored in the loop itself: a hand-over to the thread would take longer.
    """

    def __init__(
        self, thread: Executor, on_call: Callable[[int, int], None] = lambda requests, rows: None
    ) -> None:
        """Score large batches in ``thread``; ``on_call(n_requests, n_rows)`` counts calls."""
        self._thread = thread
        self._on_call = on_call
        self._waiting: deque[_Job] = deque()
        self._is_busy = False

    async def score(self, model: ServedModel, batch: CsrBatch) -> Scores:
        """Return the scores of a request's rows, of shape (n_rows,)."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Scores] = loop.create_future()
        self._waiting.append(_Job(model, batch, answer))
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._score_waiting)
        return await answer

    def _score_waiting(self) -> None:
        jobs = self._next_jobs()
        if not jobs:
            self._is_busy = False
            return
        try:
            self._score_jobs(jobs)
        except Exception as err:  # noqa: BLE001 - the next requests must not wait forever
            self._answer(jobs, [err] * len(jobs))

    def _score_jobs(self, jobs: Sequence[_Job]) -> None:
        """Score a small batch here, a large one in the thread."""
        loop = asyncio.get_running_loop()
        n_rows = sum(job.batch.n_rows for job in jobs)
        self._on_call(len(jobs), n_rows)
        n_entries = sum(job.batch.nnz for job in jobs)
        if (n_entries + n_rows) * (jobs[0].model.weights.k + 1) <= INLINE_WORK:
            self._answer(jobs, _predict(jobs))
            return
        future = loop.run_in_executor(self._thread, _predict, jobs)
        future.add_done_callback(lambda done: self._answer(jobs, done.result()))

    def _next_jobs(self) -> list[_Job]:
        """Remove and return the first waiting jobs of one model, as many as fit one call."""
        jobs: list[_Job] = []
        n_entries = 0
        while self._waiting:
            job = self._waiting[0]
            n_entries += job.batch.nnz
            if jobs and (job.model is not jobs[0].model or n_entries > MAX_ENTRIES):
                break
            self._waiting.popleft()
            if not job.answer.done():  # else its caller has gone
                jobs.append(job)
        return jobs

    def _answer(self, jobs: Sequence[_Job], outcomes: Sequence[Scores | Exception]) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.answer.done():
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)
        asyncio.get_running_loop().call_soon(self._score_waiting)


def _predict(jobs: Sequence[_Job]) -> list[Scores | Exception]:
    """Return each job's scores or error; an error of one does not spread to the others."""
    try:
        scores = jobs[0].model.predict(CsrBatch.concat([job.batch for job in jobs]))
        ends = np.cumsum([job.batch.n_rows for job in jobs])[:-1]
        return list(np.split(scores, ends))
    except Exception as err:  # noqa: BLE001 - handed to the request that caused it
        if len(jobs) == 1:
            return [err]
        return [outcome for job in jobs for outcome in _predict([job])]


class OverloadedError(RuntimeError):
    """The worker is at a limit: 503, try again."""


class Admission:
    """Counts the requests and body bytes that a worker holds, up to a maximum of each."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def enter(self) -> Lease:
        """Return a lease for one request, to be used in ``with``, or raise OverloadedError."""
        if self.requests >= self.max_requests:
            raise OverloadedError(f"This server holds {self.requests} requests already. Try again.")
        return Lease(self)


class Lease:
    """What one request holds; released when its block ends."""

    __slots__ = ("_admission", "_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        admission.requests += 1

    def hold(self, n_bytes: int) -> None:
        """Count bytes of a body as they arrive, or raise OverloadedError."""
        admission = self._admission
        if admission.bytes + n_bytes > admission.max_bytes:
            raise OverloadedError(
                f"This server holds request bodies of {admission.bytes} bytes already. Try again."
            )
        admission.bytes += n_bytes
        self._bytes += n_bytes

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission.requests -= 1
        self._admission.bytes -= self._bytes
