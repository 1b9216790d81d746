"""Streaming: each file of a growing folder reaches the sink exactly once."""

from __future__ import annotations

import json
import os

import pyspark
import pytest
import scipy.sparse as sp
from pyspark.errors import PySparkException

import spark_fm
from spark_fm.recordio import write_records

pytestmark = pytest.mark.spark

FORMAT = "recordio-protobuf"
HAS_LIMITS = tuple(map(int, pyspark.__version__.split(".")[:2])) >= (4, 2)


@pytest.fixture
def session(spark):
    spark_fm.register(spark)
    return spark


@pytest.fixture
def arrive(tmp_path):
    """Return a function that puts a file with the labels into the folder, at once."""
    folder = tmp_path / "in"
    folder.mkdir()

    def put(name, *labels, modified=None):
        hidden = folder / f".{name}"
        write_records(hidden, sp.csr_matrix(([1.0] * len(labels), (range(len(labels)), labels)),
                                            shape=(len(labels), 100)), labels)  # fmt: skip
        if modified is not None:
            os.utime(hidden, (modified, modified))
        hidden.rename(folder / name)
        return folder / name

    return put


def run(session, tmp_path, **options):
    """Process what is there, in a query that goes on from the checkpoint."""
    stream = session.readStream.format(FORMAT).options(**options).load(str(tmp_path / "in"))
    query = (
        stream.writeStream.format("parquet")
        .option("path", str(tmp_path / "out"))
        .option("checkpointLocation", str(tmp_path / "checkpoint"))
        .trigger(availableNow=True)
        .start()
    )
    try:
        query.awaitTermination(120)
        if query.exception() is not None:
            raise query.exception()
    finally:
        query.stop()
    return sorted(row.label for row in session.read.parquet(str(tmp_path / "out")).collect())


def test_a_stream_of_batches_without_a_limit_is_read(session, arrive, tmp_path):
    arrive("a.pbr", 1, 2)
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = session.conf.get(name)
    session.conf.set(name, 0)
    try:
        assert run(session, tmp_path) == [1, 2]
    finally:
        session.conf.set(name, before)


@pytest.mark.connect
def test_each_file_is_read_once_across_restarts_whatever_its_time_and_may_go_then(
    session, arrive, tmp_path
):
    path = arrive("b.pbr", 1, 2)
    assert run(session, tmp_path) == [1, 2]
    assert run(session, tmp_path) == [1, 2]

    path.unlink()
    arrive("a.pbr", 3, modified=1)  # older than what was read, and before it by name
    arrive("c.pbr", 4)

    assert run(session, tmp_path) == [1, 2, 3, 4]


def test_a_batch_that_failed_is_read_again_the_same(session, arrive, tmp_path):
    arrive("a.pbr", 1)
    run(session, tmp_path)
    path = arrive("b.pbr", 2)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(PySparkException, match=r"b\.pbr: record 0 at byte 0: the file ends inside"):
        run(session, tmp_path)
    arrive("c.pbr", 3)  # not part of the batch that is done again, but of the next
    path.write_bytes(content)

    if not HAS_LIMITS:
        assert run(session, tmp_path) == [1, 2]  # no more than the batch that was begun
    assert run(session, tmp_path) == [1, 2, 3]


@pytest.mark.connect
def test_a_file_that_went_before_its_batch_was_done_is_told(session, arrive, tmp_path):
    path = arrive("a.pbr", 1)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(PySparkException):
        run(session, tmp_path)
    path.unlink()

    with pytest.raises(PySparkException, match="1 of 1 files of a batch are gone"):
        run(session, tmp_path)


@pytest.mark.skipif(not HAS_LIMITS, reason="PySpark before 4.2 does not say where a batch starts")
def test_a_trigger_takes_no_more_files_than_it_may(session, arrive, tmp_path):
    for i in range(3):
        arrive(f"{i}.pbr", i)
    stream = session.readStream.format(FORMAT).option("maxFilesPerTrigger", 2)
    query = (
        stream.load(str(tmp_path / "in")).writeStream.format("parquet")
        .option("path", str(tmp_path / "out"))
        .option("checkpointLocation", str(tmp_path / "checkpoint"))
        .start()
    )  # fmt: skip
    try:
        query.processAllAvailable()
    finally:
        query.stop()

    offsets = sorted((tmp_path / "checkpoint" / "offsets").glob("[0-9]*"))
    counts = [json.loads(path.read_text().splitlines()[-1])["count"] for path in offsets]
    assert counts == [2, 3]
    assert session.read.parquet(str(tmp_path / "out")).count() == 3


@pytest.mark.skipif(HAS_LIMITS, reason="this PySpark can limit files")
def test_a_limit_that_cannot_be_kept_is_refused(session, arrive, tmp_path):
    arrive("a.pbr", 1)
    with pytest.raises(PySparkException, match="maxFilesPerTrigger needs"):
        run(session, tmp_path, maxFilesPerTrigger=1)
