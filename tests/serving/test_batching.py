"""Requests that come together are scored together; none waits, none suffers for another."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from spark_fm.learner.csr import CsrBatch
from spark_fm.serving import batching
from spark_fm.serving.batching import Batcher
from tests.builders import planted_weights, random_batch

WEIGHTS = planted_weights(30, 3, seed=2)


@dataclass
class Model:
    """Scores as the real one, and notes each call."""

    weights: object = WEIGHTS
    calls: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    on_call: object = lambda: None

    def predict(self, batch: CsrBatch) -> np.ndarray:
        self.calls.append(batch.n_rows)
        self.threads.add(threading.get_ident())
        self.on_call()
        if batch.nnz and batch.indices.max() >= 30:
            raise ValueError("outside")
        return WEIGHTS.predict(batch, "logistic")


def run(*jobs, on_call=lambda requests, rows: None):
    """Score (model, batch) pairs at once; return results or errors in order."""

    async def together():
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(thread, on_call)
            return await asyncio.gather(
                *(batcher.score(*job) for job in jobs), return_exceptions=True
            )

    return asyncio.run(together())


def test_requests_of_one_turn_are_one_call_and_each_gets_its_own_scores():
    model, told = Model(), []
    batches = [random_batch(n, 30, seed=n) for n in (1, 4, 2, 1)]
    found = run(*((model, b) for b in batches), on_call=lambda *facts: told.append(facts))
    assert model.calls == [8]
    assert told == [(4, 8)]
    for batch, scores in zip(batches, found, strict=True):
        assert np.array_equal(scores, WEIGHTS.predict(batch, "logistic"))


def test_requests_of_two_models_are_two_calls():
    old, new = Model(), Model()
    batch = random_batch(2, 30, seed=0)
    run((old, batch), (old, batch), (new, batch))
    assert (old.calls, new.calls) == ([4], [2])


def test_an_error_is_that_of_its_own_request_only():
    model = Model()
    good = random_batch(2, 30, seed=0)
    bad = CsrBatch.from_arrays(
        np.array([0, 1]), np.array([30], np.int32), np.array([1], np.float32)
    )
    first, second, third = run((model, good), (model, bad), (model, good))
    assert np.array_equal(first, third)
    assert isinstance(second, ValueError)


@pytest.mark.parametrize("fails", ["the count", "the thread"])
def test_a_call_that_cannot_begin_is_its_requests_error_and_the_next_are_scored(fails, monkeypatch):
    monkeypatch.setattr(batching, "INLINE_WORK", 0)
    batch = random_batch(2, 30, seed=0)
    is_broken = fails == "the count"

    def count(requests, rows):
        if is_broken:
            raise OSError("no space left")

    async def scenario():
        nonlocal is_broken
        with ThreadPoolExecutor(1) as sound, ThreadPoolExecutor(1) as ended:
            ended.shutdown()
            batcher = Batcher(ended if fails == "the thread" else sound, count)
            asked = [batcher.score(Model(), batch) for _ in range(2)]
            first = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
            is_broken, batcher._thread = False, sound
            return first, await asyncio.wait_for(batcher.score(Model(), batch), 30)

    first, after = asyncio.run(scenario())
    kind = OSError if fails == "the count" else RuntimeError
    assert [type(outcome) for outcome in first] == [kind, kind]
    assert np.array_equal(after, WEIGHTS.predict(batch, "logistic"))


def test_small_work_stays_in_the_loop_and_large_work_leaves_it(monkeypatch):
    here = threading.get_ident()
    small, large = Model(), Model()
    run((small, random_batch(2, 30, seed=0)))
    monkeypatch.setattr(batching, "INLINE_WORK", 10)
    run((large, random_batch(20, 30, seed=0)))
    assert small.threads == {here}
    assert large.threads
    assert here not in large.threads


def test_the_loop_goes_on_and_requests_gather_while_a_large_one_is_scored(monkeypatch):
    monkeypatch.setattr(batching, "INLINE_WORK", 10)
    begun, may_end = threading.Event(), threading.Event()

    def hold():
        begun.set()
        assert may_end.wait(30)

    model = Model(on_call=hold)
    batch = random_batch(20, 30, seed=0)

    async def scenario():
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(thread)
            first = asyncio.create_task(batcher.score(model, batch))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            more = [asyncio.create_task(batcher.score(model, batch)) for _ in range(5)]
            started = time.perf_counter()
            await asyncio.sleep(0)
            turn = time.perf_counter() - started
            may_end.set()
            await asyncio.gather(first, *more)
            return turn

    assert asyncio.run(scenario()) < 1  # nothing in the loop waited for `may_end`
    assert model.calls == [20, 100]


def test_a_caller_that_has_gone_is_left_out():
    model = Model()
    batch = random_batch(3, 30, seed=0)

    async def scenario():
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(thread)
            gone = asyncio.create_task(batcher.score(model, batch))
            stays = asyncio.create_task(batcher.score(model, batch))
            asyncio.get_running_loop().call_soon(gone.cancel)
            scores = await stays
            with pytest.raises(asyncio.CancelledError):
                await gone
            return scores

    assert len(asyncio.run(scenario())) == 3


def test_a_call_has_a_bound(monkeypatch):
    monkeypatch.setattr(batching, "MAX_ENTRIES", 5)
    model = Model()
    batch = random_batch(1, 30, seed=1, lengths=(3, 3))
    run(*[(model, batch)] * 4)
    assert model.calls == [1, 1, 1, 1]
