"""Rounds that tasks of one Spark job serve: the same bits, and no core kept too long."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spark_fm.errors import SparkFMError
from spark_fm.spark.broadcast import shared_folder
from spark_fm.training import rounds, worker_pool
from spark_fm.training.tasks import STOP, WorkerLoop, command_file, reply_file, write_complete
from tests.conftest import MODE
from tests.training import flaky
from tests.training.builders import assert_same_model, machine, pretend_cluster

classic = pytest.mark.skipif(MODE == "connect", reason="its driver shares no files with tasks")


def two_workers(**params):
    return machine(numWorkers=2, epochs=3, **params)


@pytest.fixture
def served(monkeypatch):
    """Whether each pass of the trainings to come was served by waiting tasks."""
    found = []
    rows_of = worker_pool.WorkerPool.rows_of

    def spy(self, task):
        rows = rows_of(self, task)
        found.append(rows is not None)
        return rows

    monkeypatch.setattr(worker_pool.WorkerPool, "rows_of", spy)
    return found


@pytest.fixture(scope="module")
def model_of_jobs(frame):
    """The model where each round is a job of its own."""
    with pytest.MonkeyPatch.context() as patch:
        pretend_cluster(patch, local_cores=0)
        return two_workers(refit="always").fit(frame)


@classic
def test_waiting_tasks_and_jobs_give_the_same_bits(frame, model_of_jobs, served):
    model = two_workers(refit="always").fit(frame)

    assert served
    assert all(served)
    assert_same_model(model, model_of_jobs)


def test_where_cores_are_too_few_each_round_is_a_job(frame, served):
    machine(numWorkers=3, epochs=1).fit(frame)

    assert served
    assert not any(served)


@classic
@pytest.mark.parametrize("task", [flaky.FlakyUpdateTask, flaky.LostUpdateTask])
def test_a_task_that_is_lost_is_taken_up_by_the_next_attempt(
    frame, model_of_jobs, served, monkeypatch, task
):
    monkeypatch.setattr(rounds, "LocalUpdateTask", task)

    model = two_workers(refit="always").fit(frame)

    assert all(served)
    assert_same_model(model, model_of_jobs)


@classic
def test_a_task_that_always_fails_ends_the_training_and_frees_its_core(
    spark, frame, served, monkeypatch
):
    monkeypatch.setattr(rounds, "LocalUpdateTask", flaky.DoomedUpdateTask)

    with pytest.raises(SparkFMError, match="A Python worker was lost"):
        two_workers().fit(frame)

    monkeypatch.undo()
    assert two_workers().fit(frame).summary.totalIterations == 3


@classic
def test_cores_that_others_hold_are_not_waited_for(
    spark, frame, model_of_jobs, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr(worker_pool, "START_SECONDS", 0.5)
    holding, trained = tmp_path / "holding", tmp_path / "trained"

    def hold(batches):
        holding.touch()
        while not trained.exists():
            time.sleep(0.01)
        yield from batches

    other_job = threading.Thread(
        target=lambda: spark.range(0, 1, 1, 1).mapInArrow(hold, "id long").count()
    )
    count = type(frame).count

    def count_and_hold(self):
        n_rows = count(self)
        if not other_job.is_alive():
            other_job.start()
            wait_for(holding)
        return n_rows

    monkeypatch.setattr(type(frame), "count", count_and_hold)
    with caplog.at_level("INFO", logger="spark_fm"):
        try:
            model = two_workers(refit="always").fit(frame)
        finally:
            trained.touch()
            monkeypatch.undo()
            other_job.join()

    assert "cores are busy" in caplog.text
    assert_same_model(model, model_of_jobs)


@classic
def test_after_a_training_its_cores_are_free_and_nothing_waits(spark, frame):
    tracker = spark.sparkContext.statusTracker()
    two_workers().fit(frame)

    assert list(tracker.getActiveJobsIds()) == []


@classic
@pytest.mark.parametrize("task", [rounds.LocalUpdateTask, flaky.EndlessUpdateTask])
def test_an_interrupted_training_leaves_no_job(spark, frame, monkeypatch, task):
    wait_for = worker_pool.WorkerPool._wait_for

    def interrupt(self, files, seconds=float("inf")):
        if seconds == float("inf"):
            time.sleep(1)  # the tasks are at it, or done and waiting
            raise KeyboardInterrupt
        return wait_for(self, files, seconds)

    monkeypatch.setattr(rounds, "LocalUpdateTask", task)
    monkeypatch.setattr(worker_pool.WorkerPool, "_wait_for", interrupt)
    with pytest.raises(KeyboardInterrupt):
        two_workers().fit(frame)

    tracker, deadline = spark.sparkContext.statusTracker(), time.monotonic() + 30
    while tracker.getActiveJobsIds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Reply:
    """A command: yield nothing."""

    def __call__(self, batches):
        yield from ()


@pytest.mark.parametrize("end", ["stop", "gone"])
def test_a_task_replies_to_each_command_once_and_ends_with_its_folder(end):
    from pyspark import cloudpickle

    with shared_folder() as folder:
        task = start_task(folder, os.getpid())
        for number in range(3):
            write_complete(command_file(folder, number), cloudpickle.dumps(Reply()))
            wait_for(reply_file(folder, number, 0))
        first = reply_file(folder, 2, 0).stat().st_mtime_ns
        time.sleep(0.05)
        assert reply_file(folder, 2, 0).stat().st_mtime_ns == first
        if end == "stop":
            write_complete(folder / STOP, b"")
            task.join(10)
    task.join(10)

    assert not task.is_alive()


def test_a_task_ends_with_its_driver():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with shared_folder() as folder:
        task = start_task(folder, gone.pid)
        task.join(10)

        assert not task.is_alive()


def start_task(folder: Path, driver: int) -> threading.Thread:
    task = WorkerLoop(str(folder), driver)
    thread = threading.Thread(target=lambda: list(task(iter(()))))
    thread.start()
    return thread


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
