"""Facts about a Spark session, Classic or Connect; driver only.

The one room, with ``broadcast`` and ``files``, that may use what only Classic has.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from py4j.protocol import (  # type: ignore[import-untyped]  # py4j has no types
    Py4JError,
    Py4JJavaError,
    Py4JNetworkError,
)
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.util import inheritable_thread_target

from spark_fm.errors import SparkFMError

log = logging.getLogger(__name__)

DEFAULT_MAX_RESULT_SIZE = "1g"
DEFAULT_DRIVER_MEMORY = "1g"
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True, slots=True, eq=False)
class SparkCluster:
    """Where the jobs of a session run; ask once a call and pass it on."""

    session: SparkSession
    is_connect: bool
    is_local: bool  # driver and workers are one machine
    local_cores: int  # tasks that a local master runs at once; 0 for another master
    task_slots: int  # tasks that run at once, as far as the session knows (>= 1)
    # Bytes that one job's result may safely have: a quarter of the driver's heap and of
    # spark.driver.maxResultSize, because a result is in the JVM twice and next to everything else.
    result_limit: int

    @classmethod
    def of(cls, session: SparkSession) -> SparkCluster:
        """Ask a session, Classic or Connect; never the process, which may hold both kinds."""
        connect = is_connect(session)
        local_cores = _local_cores(session)
        limits = [_size_setting(session, "spark.driver.memory", DEFAULT_DRIVER_MEMORY)]
        largest = _size_setting(session, "spark.driver.maxResultSize", DEFAULT_MAX_RESULT_SIZE)
        if largest:
            limits.append(largest)
        return cls(
            session=session,
            is_connect=connect,
            is_local=is_local_master(session),
            local_cores=local_cores,
            task_slots=_task_slots(session, local_cores),
            result_limit=min(limits) // 4,
        )

    @property
    def shares_files(self) -> bool:
        """Whether tasks certainly see the driver's files."""
        return self.is_local and not self.is_connect

    @property
    def tasks_share_files(self) -> bool:
        """Whether tasks certainly see each other's files: there is one executor, the driver."""
        return self.is_local and self.local_cores > 0

    def n_executors(self) -> int:
        """Return how many executors there are, as far as the session knows (>= 1)."""
        instances = setting(self.session, "spark.executor.instances", "")
        if instances.isdigit() and int(instances) > 0:
            return int(instances)
        if not self.is_connect:
            jvm: Any = self.session.sparkContext._jsc
            return max(1, int(jvm.sc().getExecutorMemoryStatus().size()) - 1)  # and the driver
        cores = setting(self.session, "spark.executor.cores", "")
        return max(1, self.task_slots // int(cores)) if cores.isdigit() and int(cores) else 1


def is_connect(session: SparkSession) -> bool:
    """Return whether this session is a Spark Connect client."""
    return type(session).__module__.startswith("pyspark.sql.connect")


def is_local_master(session: SparkSession) -> bool:
    """Return whether driver and workers are one machine."""
    return setting(session, "spark.master", "").startswith("local")


def setting(session: SparkSession, name: str, default: str) -> str:
    """Return a Spark setting, or the default where it is unset or not visible."""
    try:
        value = session.conf.get(name, default)
    except PySparkException:
        return default
    return default if value is None else str(value)


def _size_setting(session: SparkSession, name: str, default: str) -> int:
    """Return a size such as ``1g`` in bytes; 0 means no limit."""
    text = setting(session, name, default)
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)b?", text.strip().lower())
    if match is None:
        match = re.fullmatch(r"(\d+)([kmgt]?)", default)
    assert match is not None  # noqa: S101 - the defaults above are well formed
    return int(match[1]) * _UNITS[match[2]]


def _task_slots(session: SparkSession, local_cores: int) -> int:
    if not is_connect(session):
        return max(1, session.sparkContext.defaultParallelism)
    if local_cores:
        return local_cores
    parallelism = setting(session, "spark.default.parallelism", "")
    if parallelism.isdigit() and int(parallelism) > 0:
        return int(parallelism)
    cores = setting(session, "spark.executor.cores", "1")
    executors = setting(session, "spark.executor.instances", "2")
    if cores.isdigit() and executors.isdigit():
        return max(1, int(cores) * int(executors))
    return 2


def _local_cores(session: SparkSession) -> int:
    master = setting(session, "spark.master", "")
    cores = re.fullmatch(r"local(?:\[(\d+|\*)(?:,\s*\d+)?\])?", master)
    if cores is None:
        return 0
    if cores[1] != "*":
        n_cores = int(cores[1] or 1)
    elif is_connect(session):
        n_cores = os.cpu_count() or 1
    else:  # the JVM knows of a container's limits
        jvm: Any = session.sparkContext._jvm
        n_cores = int(jvm.java.lang.Runtime.getRuntime().availableProcessors())
    return n_cores // int(setting(session, "spark.task.cpus", "1"))


def use_driver_interpreter(session: SparkSession) -> None:
    """Let the workers of a local master run this interpreter, unless one is set.

    Without ``PYSPARK_PYTHON`` Spark starts ``python3`` from the path, which is another
    interpreter in a virtual environment that was not activated.
    """
    if is_connect(session) or os.environ.get("PYSPARK_PYTHON"):
        return
    context = session.sparkContext
    is_set = setting(session, "spark.pyspark.python", "")
    if not is_set and is_local_master(session) and context.pythonExec == "python3":
        context.pythonExec = sys.executable


def disable_columnar_udf_input(session: SparkSession) -> None:
    """Let Python functions in SQL take vectors of a Parquet table.

    From 4.2 on Spark hands columnar batches of such a source to them as they are, and
    fails for VectorUDT (UNSUPPORTED_DATATYPE). Nothing in a SQL function can prevent it.
    """
    name = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
    try:
        value = session.conf.get(name)  # a default here would hide Spark's own
    except (PySparkException, Py4JJavaError):
        return  # before 4.2 there is no such setting
    if value == "true":
        session.conf.set(name, "false")
        log.info("%s is now false: with it no SQL function takes a vector column", name)


@contextmanager
def tagged(session: SparkSession, what: str) -> Iterator[str]:
    """Tag the jobs inside; on an exception or interruption cancel those still running."""
    tag = f"spark_fm-{what}-{uuid4().hex[:12]}"
    handled = sys.exc_info()[1]  # what the caller is dealing with is not of the block
    _add_tag(session, tag)
    try:
        yield tag
    except BaseException as failure:
        cancel_jobs(session, tag)
        if _follows_an_interrupt(failure, handled) and not isinstance(failure, KeyboardInterrupt):
            raise KeyboardInterrupt from failure
        if _means_a_lost_jvm(failure):
            raise SparkFMError(
                "The JVM of the Spark driver is gone, most likely for want of memory. Start it "
                "with more (spark.driver.memory), or lower numFactors or the size of the grid."
            ) from failure
        raise
    finally:
        with _while_the_jvm_lives():
            _remove_tag(session, tag)


def _add_tag(session: SparkSession, tag: str) -> None:
    """Tag the jobs that this thread starts from now on.

    On Classic the context's tags, not the session's: the first ``session.addTag`` leaves a
    thread-local in the JVM's session that Spark cannot serialise. The training summary of
    each of Spark's own models holds that session, so no later one could be applied.
    """
    if is_connect(session):
        session.addTag(tag)
    else:
        session.sparkContext.addJobTag(tag)


def _remove_tag(session: SparkSession, tag: str) -> None:
    if is_connect(session):
        session.removeTag(tag)
    else:
        session.sparkContext.removeJobTag(tag)


def job_thread(session: SparkSession, tag: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``work`` for a thread of its own, where its jobs are as the caller's and tagged.

    Classic only. Tags belong to one thread.
    """

    def tagged_work() -> Any:
        _add_tag(session, tag)
        try:
            return work()
        finally:
            with _while_the_jvm_lives():
                _remove_tag(session, tag)

    inherit: Any = inheritable_thread_target(session)
    # Spark 4.0 gives the session back where Python threads have no JVM threads of their own.
    return tagged_work if inherit is session else cast(Callable[[], Any], inherit(tagged_work))


@contextmanager
def active(session: SparkSession) -> Iterator[None]:
    """Make a Connect session the active one of this thread, where resource profiles are made.

    Only the thread that started a session has one: threads of CrossValidator have none.
    """
    local = getattr(type(session), "_active_session", None)
    if not is_connect(session) or local is None:
        yield
        return
    before = getattr(local, "session", None)
    local.session = session
    try:
        yield
    finally:
        local.session = before


def cancel_jobs(session: SparkSession, tag: str) -> None:
    """Cancel the jobs with a tag, whatever thread started them."""
    try:
        if is_connect(session):
            session.interruptTag(tag)
        else:
            session.sparkContext.cancelJobsWithTag(tag)
    except Exception as err:  # noqa: BLE001 - it must not hide what went wrong
        log.debug("jobs tagged %s were not cancelled: %s", tag, err)


@contextmanager
def _while_the_jvm_lives() -> Iterator[None]:
    """Clean up while there is a JVM; after its loss, which was reported, nothing is left."""
    try:
        yield
    except (Py4JError, ConnectionError) as err:
        if not _means_a_lost_jvm(err):
            raise


def _follows_an_interrupt(failure: BaseException, handled: BaseException | None) -> bool:
    """Return whether an interrupt made the block fail; PySpark's clean-ups may hide it."""
    found: BaseException | None = failure
    seen: set[int] = set()
    while found is not None and found is not handled and id(found) not in seen:
        if isinstance(found, KeyboardInterrupt):
            return True
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return False


def _means_a_lost_jvm(failure: BaseException) -> bool:
    # A call that the JVM does not live to answer fails as a plain Py4JError, with no cause.
    return isinstance(failure, (Py4JNetworkError, ConnectionError)) or type(failure) is Py4JError


@contextmanager
def persisted(frame: DataFrame, *, on_disk: bool = False) -> Iterator[DataFrame]:
    """Keep a DataFrame in memory or on disk inside the block, where Spark allows it.

    Blocks of rows belong ``on_disk``, which is the page cache while there is room. Spark
    keeps them in memory in arrays of 1 MiB, and the usual collector of a heap below 8 GiB
    gives each of these two: a heap of 4 GiB is full before Spark thinks so.
    """
    from pyspark import StorageLevel

    is_kept = False
    try:
        frame.persist(StorageLevel.DISK_ONLY if on_disk else StorageLevel.MEMORY_AND_DISK)
        is_kept = True
    except PySparkException as err:
        log.warning("this session cannot persist (%s): data is read again every epoch", err)
    try:
        yield frame
    finally:
        if is_kept:
            with _while_the_jvm_lives():
                frame.unpersist()


def is_persisted(frame: DataFrame) -> bool:
    """Return whether Spark keeps a DataFrame."""
    try:
        level = frame.storageLevel
    except PySparkException:  # a session that cannot persist
        return False
    return bool(level.useMemory or level.useDisk)
