"""Requests that wait together are scored together, within limits of rows and bytes."""

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
INLINE_WORK = 2**17  # multiply-adds, some 50 µs: less than the way to a thread and back
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    model: ServedModel
    batch: CsrBatch
    answer: asyncio.Future[Scores]


class Batcher:
    """Gather requests and score them.

    Parameters
    ----------
    thread : Executor
        Where large batches are scored; the kernel holds no GIL.
    on_call : callable, optional
        Told the requests and rows of each kernel call.

    Notes
    -----
    Belongs to one event loop. Small batches are scored right in it: a hand-over to a
    thread would take longer than the scoring.
    """

    def __init__(
        self, thread: Executor, on_call: Callable[[int, int], None] = lambda requests, rows: None
    ) -> None:
        self._thread = thread
        self._on_call = on_call
        self._waiting: deque[_Job] = deque()
        self._is_busy = False

    async def score(self, model: ServedModel, batch: CsrBatch) -> Scores:
        """Return the scores of a request's rows, float32 of shape (n_rows,)."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Scores] = loop.create_future()
        self._waiting.append(_Job(model, batch, answer))
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._call)
        return await answer

    def _call(self) -> None:
        """Score what waits, here or in the thread."""
        jobs = self._next_jobs()
        if not jobs:
            self._is_busy = False
            return
        try:
            self._begin(jobs)
        except Exception as err:  # noqa: BLE001 - the next requests must not wait for ever
            self._answer(jobs, [err] * len(jobs))

    def _begin(self, jobs: Sequence[_Job]) -> None:
        """Score jobs that fit in the loop, hand others to the thread."""
        loop = asyncio.get_running_loop()
        n_rows = sum(job.batch.n_rows for job in jobs)
        self._on_call(len(jobs), n_rows)
        n_entries = sum(job.batch.nnz for job in jobs)
        if (n_entries + n_rows) * (jobs[0].model.weights.k + 1) <= INLINE_WORK:
            self._answer(jobs, _outcomes(jobs))
            return
        future = loop.run_in_executor(self._thread, _outcomes, jobs)
        future.add_done_callback(lambda done: self._answer(jobs, done.result()))

    def _next_jobs(self) -> list[_Job]:
        """Take the first waiting jobs of one model, as many as one call may have."""
        jobs: list[_Job] = []
        n_entries = 0
        while self._waiting:
            job = self._waiting[0]
            n_entries += job.batch.nnz
            if jobs and (job.model is not jobs[0].model or n_entries > MAX_ENTRIES):
                break
            self._waiting.popleft()
            if not job.answer.done():  # its caller has gone
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
        asyncio.get_running_loop().call_soon(self._call)


def _outcomes(jobs: Sequence[_Job]) -> list[Scores | Exception]:
    """Return scores or error of each job; one job's error is not the others'."""
    try:
        scores = jobs[0].model.predict(CsrBatch.concat([job.batch for job in jobs]))
        ends = np.cumsum([job.batch.n_rows for job in jobs])[:-1]
        return list(np.split(scores, ends))
    except Exception as err:  # noqa: BLE001 - handed to the request that caused it
        if len(jobs) == 1:
            return [err]
        return [outcome for job in jobs for outcome in _outcomes([job])]


RETRY_AFTER_SECONDS = 1


class OverloadedError(RuntimeError):
    """The worker holds all that it may: 503, come again."""


class Admission:
    """Count the requests and body bytes that a worker holds.

    Parameters
    ----------
    max_requests, max_bytes : int
        The most of either at once.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def enter(self) -> Lease:
        """Return a ticket for one request, to be used in ``with``.

        Raises
        ------
        OverloadedError
            When ``max_requests`` are held.
        """
        if self.requests >= self.max_requests:
            raise OverloadedError(f"This server holds {self.requests} requests already. Try again.")
        return Lease(self)


class Lease:
    """One request's share; given back when its block ends."""

    __slots__ = ("_admission", "_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        admission.requests += 1

    def hold(self, n_bytes: int) -> None:
        """Count bytes of a body as they arrive.

        Raises
        ------
        OverloadedError
            When the bodies of all requests would exceed ``max_bytes``.
        """
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
