"""Training on real Spark: determinism, retries, partitions, clean-up, limits."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, to_frame
from spark_fm.errors import ModelTooLargeError, SparkFMError
from spark_fm.spark.gpu import GpuAssignment
from spark_fm.spark.resources import Device
from spark_fm.training import dataset, rounds, single_task, trainer
from spark_fm.training import plan as planning
from tests.conftest import MODE
from tests.training import flaky
from tests.training.builders import N_FEATURES, assert_same_model, machine, pretend_cluster


@pytest.mark.connect
@pytest.mark.parametrize("workers", [0, 3])
def test_same_seed_gives_bit_equal_models(frame, workers):
    assert_same_model(
        machine(numWorkers=workers).fit(frame), machine(numWorkers=workers).fit(frame)
    )


def test_another_seed_gives_another_model(frame):
    tables = [machine(seed=seed).fit(frame).weights.table for seed in (5, 6)]

    assert not np.array_equal(*tables)


@pytest.mark.connect
@pytest.mark.parametrize("workers", [0, 3])
def test_retried_tasks_change_nothing(frame, workers, monkeypatch):
    calm = machine(numWorkers=workers).fit(frame)

    monkeypatch.setattr(dataset, "PackTask", flaky.FlakyPackTask)
    monkeypatch.setattr(rounds, "LocalUpdateTask", flaky.FlakyUpdateTask)
    monkeypatch.setattr(single_task, "SingleTask", flaky.FlakySingleTask)

    assert_same_model(calm, machine(numWorkers=workers).fit(frame))


@pytest.mark.connect
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_that_many_workers_train_as_were_asked_for(frame, workers):
    model = machine(numWorkers=workers, epochs=1).fit(frame)

    assert model.summary.facts["numWorkers"] == workers


@pytest.mark.connect
def test_a_lost_worker_is_called_so(frame):
    def die(batches):

        os._exit(1)
        yield from batches

    with pytest.raises(SparkFMError, match=r"A Python worker was lost.*local\[\*,4\]"):
        machine().fit(frame.mapInArrow(die, frame.schema))


def test_more_workers_than_rows_are_legal(spark):
    few = Rows(sp.csr_matrix(np.eye(4)), np.array([0.0, 1.0, 0.0, 1.0]))
    model = machine(numWorkers=6, epochs=1, validationFraction=0.0).fit(to_frame(spark, few))

    assert model.summary.facts["numWorkers"] == 6
    assert np.isfinite(model.weights.table).all()


def test_every_row_is_visited_once_an_epoch_by_every_number_of_workers(frame):
    for workers in (1, 2, 7):
        model = machine(numWorkers=workers, epochs=2, refit="never").fit(frame)
        facts, history = model.summary.facts, model.summary.history
        visited = history["rowsPerSecond"] * history["seconds"]
        assert facts["numTrainRows"] + facts["numValidationRows"] == 600
        np.testing.assert_allclose(visited, facts["numTrainRows"], rtol=1e-9)


def test_merging_on_executors_gives_the_driver_s_bits(frame):
    assert_same_model(
        machine(numWorkers=3, aggregationDepth=1).fit(frame),
        machine(numWorkers=3, aggregationDepth=2).fit(frame),
    )


def test_the_executors_merge_when_the_result_would_be_too_large(frame, monkeypatch):
    pretend_cluster(monkeypatch, is_local=False, result_limit=1000)
    model = machine(numWorkers=2, epochs=1).fit(frame)

    assert model.summary.facts["mergedOnExecutors"]


def test_results_over_the_limit_come_in_parts_with_the_same_bits(frame, monkeypatch):
    whole = machine().fit(frame)
    pretend_cluster(monkeypatch, result_limit=-1)

    assert_same_model(whole, machine().fit(frame))


def test_a_stretch_of_epochs_a_job_changes_nothing(frame, monkeypatch):
    one_job = machine(epochs=4).fit(frame)
    monkeypatch.setattr(single_task, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(single_task, "LONGEST_SECONDS", 0.0)

    many_jobs = machine(epochs=4).fit(frame)

    assert_same_model(one_job, many_jobs)
    assert many_jobs.summary.totalIterations == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_early_stopping_keeps_the_best_epoch(frame, workers):
    flagged = frame.withColumn("held", F.hash("features", "label") % 4 == 0)
    model = machine(
        numWorkers=workers, epochs=40, patience=2, factorsLr=1.5, linearLr=1.5,
        validationIndicatorCol="held", averageEpochs=False, tol=0.0,
    ).fit(flagged)  # fmt: skip
    history = model.summary.history

    assert len(history) < 40
    assert model.summary.bestEpoch == history["validationLoss"].idxmin()
    held = flagged.where("held")
    losses = model.transform(held).select(
        F.avg(F.when(F.col("label") == 1, -F.log("score")).otherwise(-F.log(1 - F.col("score"))))
    )
    assert losses.first()[0] == pytest.approx(history["validationLoss"].min(), rel=1e-4)


def test_validation_rows_do_not_depend_on_the_partitions(spark, rows):
    no_equal_ones = Rows(
        rows.X.multiply(np.arange(1, rows.X.shape[0] + 1)[:, None]).tocsr(), rows.y
    )
    counts = {
        machine(epochs=1).fit(to_frame(spark, no_equal_ones, n)).summary.facts["numValidationRows"]
        for n in (1, 4)
    }

    assert len(counts) == 1


def test_feature_ids_up_to_the_largest_keep_a_table_of_those_seen(spark):
    from pyspark.ml.linalg import Vectors

    top = 2**31 - 2
    data = [
        (float(i % 2), Vectors.sparse(top + 1, [i % 3, 5_000_000 + i % 2, top], [1.0, 1.0, 0.5]))
        for i in range(40)
    ]
    frame = spark.createDataFrame(data, ["label", "features"])
    for workers in (1, 2):
        model = machine(numWorkers=workers, epochs=10, validationFraction=0.0).fit(frame)
        assert model.features.tolist() == [0, 1, 2, 5_000_000, 5_000_001, top]
        assert model.numFeatures == top + 1
        scored = model.transform(frame)
        assert scored.where("predicted_label != label").count() == 0


def test_a_feature_never_trained_adds_nothing(spark):
    matrix = sp.csr_matrix(np.array([[1.0, 0, 0, 1], [0, 1.0, 0, 1]] * 20))
    model = machine(validationFraction=0.0).fit(to_frame(spark, Rows(matrix, [0.0, 1.0] * 20)))

    with_unseen = model.predict(np.array([[1.0, 0, 5.0, 1.0]]))
    without = model.predict(np.array([[1.0, 0, 0, 1.0]]))

    np.testing.assert_array_equal(with_unseen, without)


def test_rows_without_non_zeros_train_the_bias(spark):
    empty = Rows(sp.csr_matrix((40, 3)), np.array([1.0] * 30 + [0.0] * 10))
    model = machine(validationFraction=0.0, epochs=5).fit(to_frame(spark, empty))

    assert model.predict(sp.csr_matrix((1, 3)))[0] == pytest.approx(0.75, abs=0.05)


def test_one_class_one_row_and_one_factor_train(spark):
    single = Rows(sp.csr_matrix(np.array([[1.0, 2.0]])), np.array([1.0]))
    model = machine(numFactors=1, epochs=2).fit(to_frame(spark, single))

    assert np.isfinite(model.predict(single.X)).all()


def test_a_thousand_factors_train(spark, rows):
    model = machine(numFactors=1024, epochs=1).fit(to_frame(spark, rows))

    assert model.factors.shape == (N_FEATURES, 1024)


def test_a_model_that_cannot_fit_is_refused_with_the_arithmetic(frame, monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda: 10_000)

    with pytest.raises(ModelTooLargeError, match=r"40 features x numFactors=4 .* GiB") as caught:
        machine().fit(frame)
    assert isinstance(caught.value, MemoryError)


def test_auto_trains_on_the_processor_where_the_rows_sorted_for_a_gpu_do_not_fit(
    frame, monkeypatch, caplog
):
    plain = machine(numWorkers=1).fit(frame)
    gpu = Device(1, GpuAssignment(local=True), optional=True)
    monkeypatch.setattr(trainer, "choose_device", lambda *_: gpu)
    limits = iter([10_000, 2**40])  # of the plan for the GPU, of the one for the processor
    monkeypatch.setattr(planning, "available_memory", lambda: next(limits, 2**40))

    with caplog.at_level(logging.WARNING, "spark_fm"):
        model = machine(numWorkers=1, device="auto").fit(frame)

    assert_same_model(model, plain)
    assert model.summary.facts["device"] == "cpu"
    [said] = [r.message for r in caplog.records if "device='auto'" in r.message]
    assert "training on the CPU: A model of 40 features" in said

    monkeypatch.setattr(planning, "available_memory", lambda: 10_000)
    with pytest.raises(ModelTooLargeError, match="set device to cpu"):
        machine(numWorkers=1, device="gpu").fit(frame)


def test_exploding_steps_roll_back_and_are_told(spark):
    rng = np.random.default_rng(2)
    counts = sp.csr_matrix(rng.integers(1, 100_000, (200, 5)).astype(float))
    labels = (rng.random(200) > 0.5).astype(float)
    for workers in (1, 2):
        model = machine(
            numWorkers=workers, optimizer="sgd", biasLr=1e6, linearLr=1e6, factorsLr=1e6,
            standardizeLabel=False,
        ).fit(to_frame(spark, Rows(counts, labels)))  # fmt: skip
        assert np.isfinite(model.weights.table).all()
        assert np.isfinite(model.bias)
        assert model.summary.facts["rejectedAttempts"] > 0
        assert "diverged" in " ".join(model.summary.warnings)


def test_models_that_explode_only_when_they_are_merged_roll_back_too(spark):
    rng = np.random.default_rng(0)
    ids = np.stack([np.sort(rng.choice(20, 8, replace=False)) for _ in range(32)])
    labels = rng.normal(size=20)[ids].sum(1)
    labels = (labels - labels.mean()) / labels.std()
    matrix = sp.csr_matrix((np.ones(256), ids.ravel(), np.arange(0, 257, 8)), shape=(32, 20))
    frame = to_frame(spark, Rows(matrix, labels))

    model = machine(
        predictorType="regressor", optimizer="adam", linearLr=0.2, factorsLr=0.2, epochs=4,
        numWorkers=8, averagingsPerEpoch=1, numFactors=2, seed=1, factorsInitSigma=0.02,
        validationFraction=0.0,
    ).fit(frame)  # fmt: skip

    scored = model.transform(frame).select("score", "label").toPandas()
    assert ((scored.score - scored.label) ** 2).mean() < 20
    assert model.summary.facts["rejectedAttempts"] > 0


def test_the_first_steps_of_a_short_round_are_no_divergence(spark):
    rng = np.random.default_rng(4)
    pixels = rng.random((800, 200))  # 200 features a row: the first steps overshoot
    labels = (pixels[:, :100].sum(1) > pixels[:, 100:].sum(1)).astype(float)

    model = machine(numWorkers=4, averagingsPerEpoch=40, epochs=1, factorsInitSigma=0.02).fit(
        to_frame(spark, Rows(sp.csr_matrix(pixels), labels))
    )

    assert model.summary.facts["rejectedAttempts"] == 0
    assert model.summary.history["stepScale"].tolist() == [1.0]


def test_a_feature_that_dwarfs_the_rest_is_named_with_its_range(spark):
    matrix = np.ones((50, 4))
    matrix[:, 2] = np.linspace(1, 5000, 50)
    data = Rows(sp.csr_matrix(matrix), np.arange(50) % 2.0)

    raw, standardized = (
        machine(epochs=1, standardization=flag).fit(to_frame(spark, data)).summary.warnings
        for flag in (False, True)
    )

    assert "Feature 2" in raw[0]
    assert "5000" in raw[0]
    assert not any("Feature 2" in text for text in standardized)


def persistent_rdds(spark):
    return spark.sparkContext._jsc.getPersistentRDDs().size()


@pytest.mark.skipif(MODE == "connect", reason="a Connect client cannot see the cache")
@pytest.mark.parametrize("workers", [1, 2])
def test_everything_persisted_is_released(spark, frame, workers):
    frame.count()
    before = persistent_rdds(spark)

    machine(numWorkers=workers, epochs=2).fit(frame)

    assert persistent_rdds(spark) == before


@pytest.mark.skipif(MODE == "connect", reason="a Connect client cannot see the cache")
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("workers", [1, 2])
def test_everything_is_released_on_failure_and_interruption(
    spark, frame, workers, interruption, monkeypatch
):
    frame.count()
    before = persistent_rdds(spark)

    def interrupt(self, report):
        raise interruption("in the middle")

    monkeypatch.setattr("spark_fm.training.callbacks.Progress.__call__", interrupt)
    with pytest.raises(interruption):
        machine(numWorkers=workers).fit(frame)

    assert persistent_rdds(spark) == before
    assert not any(tag.startswith("spark_fm") for tag in spark.getTags())


@pytest.mark.connect
@pytest.mark.parametrize("workers", [0, 2])
def test_training_works_where_persist_is_refused(frame, workers, monkeypatch, caplog):
    from pyspark.errors import PySparkNotImplementedError

    kept = machine(numWorkers=workers).fit(frame)

    def persist(self, level=None):
        raise PySparkNotImplementedError("NOT_IMPLEMENTED", {"feature": "persist"})

    monkeypatch.setattr(type(frame), "persist", persist)
    pretend_cluster(monkeypatch, local_cores=0)  # else the packed rows are in files
    with caplog.at_level(logging.WARNING, "spark_fm"):
        read_again = machine(numWorkers=workers).fit(frame)

    assert "cannot persist" in caplog.text
    assert_same_model(kept, read_again)


def test_a_heavy_label_in_a_small_partition_is_no_explosion(spark):
    rng = np.random.default_rng(3)
    labels = rng.standard_normal(2000)
    labels[77] = 40.0
    matrix = sp.csr_matrix(np.eye(5)[rng.integers(0, 5, 2000)])
    model = machine(
        predictorType="regressor", numWorkers=8, averagingsPerEpoch=8, epochs=1
    ).fit(to_frame(spark, Rows(matrix, labels)))  # fmt: skip

    assert model.summary.facts["rejectedAttempts"] == 0


def test_rounds_without_rows_are_skipped(spark):
    from pyspark.ml.functions import array_to_vector

    late = spark.range(0, 12, 1, 12).where("id >= 9")
    frame = late.select(
        (F.col("id") % 2).cast("double").alias("label"),
        array_to_vector(F.array((F.col("id") - 9).cast("double"), F.lit(1.0))).alias("features"),
    )
    model = machine(numWorkers=4, epochs=1, validationFraction=0.0).fit(frame)

    assert model.summary.facts["rejectedAttempts"] == 0
    assert model.summary.facts["numRows"] == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_ratios_of_weights_matter(frame, workers):
    def fit(weight):
        weighted = frame.withColumn("w", F.lit(weight) * (1 + F.hash("features") % 2))
        return machine(numWorkers=workers, weightCol="w").fit(weighted)

    assert_same_model(fit(1.0), fit(0.0009765625))


def test_a_validation_column_without_training_rows_is_refused(frame):
    from spark_fm.errors import InvalidDataError

    with pytest.raises(InvalidDataError, match="validationIndicatorCol='held' is true in every"):
        machine(validationIndicatorCol="held").fit(frame.withColumn("held", F.lit(True)))
