"""On a cluster whose executors share no files: the same bits, whatever arrives when and dies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.digests import digest, write_rows
from benchmarks.standalone import StandaloneCluster
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import SparkFMError
from spark_fm.training.callbacks import Progress

pytestmark = pytest.mark.cluster
CORES = 2  # of each of two executors
RUNS = 3

INPUTS: dict[str, Callable[[DataFrame], DataFrame]] = {
    "scan": lambda rows: rows,
    "coalesce": lambda rows: rows.coalesce(1),
    "repartition": lambda rows: rows.repartition(4),
    "join": lambda rows: rows.join(rows.select("user").distinct().hint("merge"), "user"),
    "groupBy": lambda rows: rows.groupBy("user", "features").agg(F.max("click").alias("click")),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    """Two workers."""
    with StandaloneCluster(own_files=True) as cluster:
        for _ in range(2):
            cluster.start_worker("1g", cores=CORES)
        yield cluster


@pytest.fixture(scope="module")
def spark(cluster: StandaloneCluster) -> Iterator[SparkSession]:
    """A session of the cluster, as soon as both executors have come."""
    settings = {
        "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "FATAL", "spark.executor.memory": "512m",
        "spark.executor.extraJavaOptions": os.environ["SPARK_SUBMIT_OPTS"],
        "spark.sql.shuffle.partitions": "4", "spark.sql.adaptive.enabled": "false",
        "spark.python.daemon.module": "tests.worker_daemon",
        # Into how many partitions files are cut must not depend on the cores that are there.
        "spark.sql.files.minPartitionNum": 4,
        "spark.scheduler.minRegisteredResourcesRatio": "1",
        "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
    }  # fmt: skip
    builder = SparkSession.builder.master(cluster.address)
    for name, value in settings.items():
        builder = builder.config(name, str(value))
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Four files, which all machines see."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    vector = array_to_vector(F.array("number", "weight", F.col("user") * 1.0, F.col("item") * 1.0))
    return spark.read.parquet(str(folder)).select("user", "click", vector.alias("features"))


def trained(rows: DataFrame) -> FactorizationMachineModel:
    """A model of four partitions."""
    rates = dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.02)  # no race
    return FactorizationMachine(
        numFactors=4, epochs=3, labelCol="click", solver="sgd", numWorkers=2 * CORES,
        averagingsPerEpoch=2, refit="never", **rates,
    ).fit(rows)  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_the_same_rows_in_the_same_partitions_train_the_same_model_on_all_executors(rows, name):
    models = [trained(INPUTS[name](rows)) for _ in range(RUNS)]

    assert len({digest(model) for model in models}) == 1
    assert [model.summary.facts["partitionsOfExecutors"] for model in models] == [[2, 2]] * RUNS


def processes_below(process: int) -> dict[int, bytes]:
    """Command lines of the processes that a process has started, and of theirs."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            _, _, fields = (folder / "stat").read_text().rpartition(")")
            parents[int(folder.name)] = int(fields.split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes()
    below = {process}
    while found := {child for child, parent in parents.items() if parent in below} - below:
        below |= found
    return {child: commands[child] for child in below - {process} if child in commands}


def killed(word: str) -> Callable[[StandaloneCluster], None]:
    """What kills those processes of the first worker whose command lines have a word in them."""

    def kill(cluster: StandaloneCluster) -> None:
        below = processes_below(cluster.workers[0].pid)
        victims = [child for child, command in below.items() if word.encode() in command]
        assert victims
        for victim in victims:
            os.kill(victim, signal.SIGKILL)

    return kill


def lose_files(cluster: StandaloneCluster) -> None:
    """Remove the rows of one executor from its disk."""
    lost = list(cluster.files(0).glob("local/**/*.rows"))
    assert lost
    for file in lost:
        file.unlink()


FAULTS = {
    "files of rows": lose_files,
    "Python workers": killed("worker_daemon"),
    "an executor": killed("CoarseGrainedExecutorBackend"),
    "a late executor": lambda cluster: cluster.start_worker("1g", cores=CORES),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_while_it_trains_changes_nothing(cluster, rows, monkeypatch, name):
    shuffled = rows.repartition(4)
    expected = digest(trained(shuffled))
    told, calls = Progress.__call__, []

    def strike(progress: Progress, *report: object) -> None:
        told(progress, *report)  # type: ignore[arg-type]
        calls.append(report)
        if len(calls) == 1:
            FAULTS[name](cluster)

    monkeypatch.setattr(Progress, "__call__", strike)

    assert digest(trained(shuffled)) == expected
    assert calls


def test_a_full_disk_is_named_with_its_executor_and_the_setting(cluster, rows):
    fillers = [cluster.files(number) / "filler" for number in range(2)]
    if shutil.disk_usage(fillers[0].parent).total > 2**28:
        pytest.skip("no mount namespaces here: the disk is everybody's")
    for filler in fillers:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(2**20)):
                pass

    with pytest.raises(SparkFMError, match=r"executor \d+ on 127\.0\.0\..*SPARK_LOCAL_DIRS"):
        trained(rows.repartition(4))

    for filler in fillers:
        filler.unlink()
    trained(rows)
