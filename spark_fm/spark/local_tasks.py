"""Jobs whose tasks need none of Spark's rows, on a local master of Classic; driver and tasks.

An RDD runs them, not a query: no plan, no generated code and no Arrow in the JVM. A job takes about
half the processor time of a query, the first of a session too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from pyspark.sql import SparkSession

from spark_fm.spark.broadcast import shared_folder
from spark_fm.spark.collect import worker_errors
from spark_fm.spark.session import SparkCluster, setting
from spark_fm.spark.worker import WorkerTask


def run_local(
    task: WorkerTask,
    n_tasks: int,
    schema: pa.Schema,
    cluster: SparkCluster,
    *,
    rows: pa.Table | None = None,
) -> pa.Table:
    """Return what a task yields, of ``schema``, in as many partitions of a job.

    Where ``cluster.shares_files``. Every task takes all ``rows``, which travel with it; what tasks
    yield comes in files.
    """
    with shared_folder() as folder:
        run = _FileTask(task, rows, schema, str(folder))
        numbers = cluster.session.sparkContext.parallelize(range(n_tasks), n_tasks)
        with workers_of_sql(cluster.session):
            job = numbers.mapPartitionsWithIndex(run)
            job.id()  # Spark makes it now
        with worker_errors():
            names = job.collect()
        files = [pa.memory_map(str(folder / name)) for name in names]  # they outlive the names
        tables = [pa.ipc.open_stream(file).read_all() for file in files]
    return pa.concat_tables([schema.empty_table(), *tables])


@dataclass(frozen=True)
class _FileTask:
    """Runs a task in each partition, and yields the name of the file that takes its rows."""

    task: WorkerTask
    rows: pa.Table | None
    schema: pa.Schema
    folder: str

    def __call__(self, number: int, _: Iterable[int]) -> Iterator[str]:
        batches = [] if self.rows is None else self.rows.to_batches()
        name = uuid4().hex  # of this attempt: one that is late must not write into another's
        with pa.ipc.new_stream(str(Path(self.folder, name)), self.schema) as stream:
            for batch in self.task(iter(batches)):
                stream.write_batch(batch)
        yield name


_environment = threading.Lock()


@contextmanager
def workers_of_sql(session: SparkSession) -> Iterator[None]:
    """Let the RDDs that are made inside run in the Python workers that SQL's functions run in.

    Spark keeps workers apart whose environments differ, and SQL adds a variable of its own. Other
    workers would have to load everything again.
    """
    name, environment = "SPARK_SIMPLIFIED_TRACEBACK", session.sparkContext.environment
    flag = setting(session, "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled", "true")
    with _environment:
        added = {name: "1"} if flag == "true" and name not in environment else {}
        environment.update(added)
        try:
            yield
        finally:
            for each in added:
                del environment[each]
