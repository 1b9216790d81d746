"""Rows, models and deltas in files on real Spark: the same bits, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from spark_fm.errors import InvalidDataError
from spark_fm.spark import broadcast
from spark_fm.training import dataset, partitions, rounds, single_task, trainer
from spark_fm.training.rounds import AveragingTrainer
from tests.training import flaky
from tests.training.builders import assert_same_model, machine, pretend_cluster


def selections_of(monkeypatch):
    """What each job of the trainings to come reads."""
    seen = []
    rows = partitions.PartitionedBlocks.rows
    monkeypatch.setattr(
        partitions.PartitionedBlocks,
        "rows",
        lambda self, selection: seen.append(selection) or rows(self, selection),
    )
    return seen


def files_left(spark):
    """Files of trainings in the local folders of the executors."""

    def listed(batches):
        for _ in batches:
            pass
        folders = os.environ["SPARK_LOCAL_DIRS"].split(",")
        names = [str(path) for folder in folders for path in Path(folder).glob("spark_fm-*/*")]
        yield pa.RecordBatch.from_pydict({"name": names})

    return [row[0] for row in spark.range(1).mapInArrow(listed, "name string").collect()]


@pytest.mark.parametrize("refit", ["never", "always"])
def test_rows_from_files_and_from_blocks_give_the_same_bits(frame, monkeypatch, refit):
    selections = selections_of(monkeypatch)
    from_files = machine(numWorkers=3, refit=refit).fit(frame)
    assert selections
    assert all(w.store is not None for w in selections)

    monkeypatch.setattr(partitions, "is_persisted", lambda _: False)
    selections.clear()
    from_blocks = machine(numWorkers=3, refit=refit).fit(frame)

    assert selections
    assert all(w.store is None for w in selections)
    assert_same_model(from_files, from_blocks)


def test_a_machine_without_the_files_reads_the_blocks(frame, monkeypatch, caplog):
    calm = machine(numWorkers=3, epochs=5).fit(frame)
    selections = selections_of(monkeypatch)
    monkeypatch.setattr(rounds, "LocalUpdateTask", flaky.ForgetfulUpdateTask)

    with caplog.at_level("INFO", logger="spark_fm"):
        model = machine(numWorkers=3, epochs=5).fit(frame)

    assert_same_model(calm, model)
    assert sum(w.store is not None for w in selections) == partitions.MOST_MISSES
    assert "from now on" in caplog.text


def test_only_the_partition_that_lost_its_files_trains_again_and_they_are_written_again(
    frame, monkeypatch
):
    calm = machine(numWorkers=3).fit(frame)
    selections, trained = selections_of(monkeypatch), []
    collected = rounds._collected
    monkeypatch.setattr(
        rounds,
        "_collected",
        lambda task, *of: trained.append(task.partitions) or collected(task, *of),
    )
    monkeypatch.setattr(rounds, "LocalUpdateTask", flaky.OnceForgetfulUpdateTask)

    assert_same_model(calm, machine(numWorkers=3).fit(frame))

    assert [partitions for partitions in trained if partitions is not None] == [{1}]
    assert sum(selection.store is None for selection in selections) == 1


def test_a_training_removes_its_files_however_it_ends(spark, frame, monkeypatch):
    machine(numWorkers=3).fit(frame)
    assert files_left(spark) == []

    def fail(*_):
        assert files_left(spark)
        raise RuntimeError("the driver fails")

    monkeypatch.setattr(AveragingTrainer, "_average", fail)
    with pytest.raises(RuntimeError, match="the driver fails"):
        machine(numWorkers=3).fit(frame)
    assert files_left(spark) == []


@pytest.mark.parametrize("workers", [0, 3])
def test_rows_packed_into_files_and_into_spark_give_the_same_bits(frame, monkeypatch, workers):
    params = {"numWorkers": workers, "validationFraction": 0.2, "keepTrainingState": True}
    through_files = machine(**params).fit(frame)
    pretend_cluster(monkeypatch, local_cores=0)
    through_spark = machine(**params).fit(frame)

    assert_same_model(through_files, through_spark)
    of_files, of_spark = (
        model.trainingState.metadata["fingerprint"] for model in (through_files, through_spark)
    )
    assert of_files == of_spark


def test_packed_rows_go_with_the_fit_that_packed_them(spark, frame, monkeypatch):
    def files_at(moment):
        monkeypatch.setattr(trainer, "check_sets", lambda *_: seen.append(files_left(spark)) or [])
        moment()
        return files_left(spark)

    seen = []
    assert files_at(lambda: machine().fit(frame)) == []
    assert any(name.endswith(".blocks") for name in seen[0])

    def refused():
        with pytest.raises(InvalidDataError, match="label other than 0 or 1"):
            machine().fit(frame.selectExpr("features", "label + 2 as label"))

    assert files_at(refused) == []

    def fails():
        monkeypatch.setattr(dataset, "PackTask", flaky.DoomedPackTask)
        with pytest.raises(Exception, match="packing fails on purpose"):
            machine().fit(frame)

    assert files_at(fails) == []


def test_values_through_files_and_through_the_jvm_give_the_same_bits(frame, monkeypatch):
    monkeypatch.setattr(broadcast, "FILE_BYTES", 0)
    through_files = [machine(numWorkers=workers).fit(frame) for workers in (0, 3)]
    pretend_cluster(monkeypatch, is_local=False)
    through_the_jvm = [machine(numWorkers=workers).fit(frame) for workers in (0, 3)]

    for one, other in zip(through_files, through_the_jvm, strict=True):
        assert_same_model(one, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_bringing_rows_to_where_they_train_is_no_part_of_an_epoch(frame, monkeypatch, workers):
    machine(numWorkers=workers, refit="never").fit(frame)  # compiles
    monkeypatch.setattr(single_task, "RowReader", flaky.SlowRowReader)
    monkeypatch.setattr(partitions, "AssignTask", flaky.SlowAssignTask)

    summary = machine(numWorkers=workers, refit="never").fit(frame).summary

    facts, epochs = summary.facts, summary.history["seconds"].sum()
    assert facts["storeSeconds"] > flaky.SLOW_SECONDS
    assert facts["packSeconds"] + facts["storeSeconds"] + epochs <= facts["totalSeconds"]
