"""One Spark job whose tasks serve all rounds of a training; driver only."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyspark import cloudpickle
from pyspark.sql.utils import is_remote

from spark_fm.spark.broadcast import shared_folder
from spark_fm.spark.collect import CHUNK_DDL, worker_errors
from spark_fm.spark.session import SparkCluster, cancel_jobs, job_thread, setting
from spark_fm.training.partitions import PartitionedBlocks
from spark_fm.training.tasks import (
    POLL_SECONDS,
    STOP,
    WorkerLoop,
    command_file,
    ready_file,
    reply_file,
    write_complete,
)

log = logging.getLogger(__name__)

# Settings under which Spark ends workers that send nothing for a while.
KILLED_WHEN_IDLE = (
    "spark.python.worker.killOnIdleTimeout",
    "spark.sql.execution.pyspark.udf.killOnIdleTimeout",
)
# Tasks that do not run by then share the cores with somebody else's job.
START_SECONDS = 5.0


class WorkerPool:
    """Tasks that wait for rounds, where all of a training's can run at once.

    Only where driver and tasks share one machine with a core for each partition. While the tasks
    wait they hold these cores: no other job of the session runs on them. Every command reads the
    listing of the blocks, computed when the tasks start.
    """

    def __init__(self, cluster: SparkCluster, n_partitions: int, blocks: PartitionedBlocks) -> None:
        session = cluster.session
        self._session = session
        self._n_partitions = n_partitions
        self._blocks = blocks
        self.usable = (
            cluster.shares_files
            and n_partitions <= cluster.local_cores
            and not blocks.cores_are_busy
            and not is_remote()  # a process of both kinds of sessions
            and not any(setting(session, name, "false") == "true" for name in KILLED_WHEN_IDLE)
        )
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._job = threading.Thread()
        self._failure: BaseException | None = None
        self._tag = f"spark_fm-rounds-{uuid4().hex[:12]}"
        self._number = 0

    def __enter__(self) -> WorkerPool:
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        """Let the tasks end; after an exception at once, whatever they are doing."""
        self.stop(waits=kind is None)

    def rows_of(self, task: Any) -> Iterator[tuple[Any, ...]] | None:
        """Return the rows of CHUNK_DDL that a task yields in all partitions; None if unusable."""
        if self.usable and self._folder is None:
            self._start()
        if not self.usable or self._folder is None:
            return None
        folder, number = self._folder, self._number
        self._number += 1
        write_complete(command_file(folder, number), cloudpickle.dumps(task))
        replies = [reply_file(folder, number, p) for p in range(self._n_partitions)]
        self._wait_for(replies)
        tables = [pa.ipc.open_stream(path.read_bytes()).read_all() for path in replies]
        for path in (command_file(folder, number), *replies):
            path.unlink()
        columns = [c.to_pylist() for c in pa.concat_tables(tables).columns]
        return zip(*columns, strict=True)

    def stop(self, *, waits: bool = True) -> None:
        """End the tasks for good; cancel their job unless ``waits``."""
        self.usable = False
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            with suppress(OSError):  # they end without the folder, too
                write_complete(folder / STOP, b"")
            if waits:
                self._job.join()
            else:
                cancel_jobs(self._session, self._tag)
        finally:
            # Under another name nobody can put a file into it while it is removed.
            gone = folder.with_name(f"{folder.name}-gone")
            with suppress(OSError):
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            self._stack.close()

    def _start(self) -> None:
        self._blocks.write_files()  # the time for that is not a wait for the tasks
        listing = self._blocks.listing
        self._folder = folder = self._stack.enter_context(shared_folder())
        task = WorkerLoop(str(folder), os.getpid())
        waiting = listing.mapInArrow(task, CHUNK_DDL)
        collect = job_thread(self._session, self._tag, waiting.collect)

        def run() -> None:
            try:
                collect()
            except BaseException as err:  # noqa: BLE001 - raised where somebody waits
                self._failure = err

        self._job = threading.Thread(target=run, daemon=True, name="spark_fm rounds")
        self._job.start()
        ready = [ready_file(folder, p) for p in range(self._n_partitions)]
        if not self._wait_for(ready, seconds=START_SECONDS):
            log.info("cores are busy: running one Spark job per averaging round")
            self._blocks.cores_are_busy = True
            self.stop(waits=False)

    def _wait_for(self, files: list[Path], seconds: float = float("inf")) -> bool:
        """Wait for files and return whether they appeared; raise what ended the job."""
        started = time.perf_counter()
        missing = files
        while missing := [path for path in missing if not path.exists()]:
            if not self._job.is_alive():
                with worker_errors():
                    raise self._failure or RuntimeError("the tasks of the rounds have ended")
            if time.perf_counter() - started > seconds:
                return False
            time.sleep(POLL_SECONDS)
        return True
