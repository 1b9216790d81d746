"""What users of pyspark.ml expect of an estimator, shown on real data: a class a promise.

Run on Spark Connect, by ``make test-connect``; ``tests/ml`` shows each with its corners on Classic.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import FeatureHasher, OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, Split, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel, FMEvaluator, tune
from spark_fm.errors import CheckpointError
from spark_fm.training import trainer
from spark_fm.training.callbacks import EpochReport, Progress
from tests.adult import CATEGORIES, adult_frame
from tests.conftest import MODE
from tests.ml.builders import column
from tests.promises.conftest import GIVEN, head

pytestmark = [pytest.mark.connect, pytest.mark.contract]

COLUMNS = ["age", "education", "occupation", "relationship", "capital_gain", "hours_per_week"]
STILL, MOVING = 1e-6, 0.2  # learning rates: one that learns nothing, one that learns


def machine(**changes: Any) -> FactorizationMachine:
    return FactorizationMachine(**{**GIVEN, "numFactors": 4, "epochs": 3, "seed": 7, **changes})


def scores(model: Any, rows: DataFrame) -> np.ndarray:
    return column(model.transform(rows), "score")


def assert_same_model(one: FactorizationMachineModel, other: FactorizationMachineModel) -> None:
    assert one.weights.bias == other.weights.bias
    assert np.array_equal(one.weights.table, other.weights.table)


# It leaves at once: on Connect Spark's own stages call the server when they are freed, which
# waits for ever while the interpreter ends.
PROGRAM = """
import os, sys
from pyspark.sql import SparkSession
from pyspark.ml import PipelineModel
assert "spark_fm" not in sys.modules
spark = SparkSession.builder.{where}.config("spark.ui.enabled", "false").getOrCreate()
model = PipelineModel.load({path!r})
rows = model.transform(spark.read.parquet({rows!r})).select("score").collect()
print("scores", [row[0].hex() for row in rows], flush=True)
os._exit(0)
"""


def where_to_score() -> str:
    """Return how a new process gets a session: its own, or as a client of this one's server."""
    if MODE != "connect":
        return 'master("local[1]")'
    from pyspark.sql.connect.client import DefaultChannelBuilder

    return f'remote("sc://localhost:{DefaultChannelBuilder.default_port()}")'


@pytest.fixture(scope="module")
def people(spark: SparkSession, a9a_split: Split) -> DataFrame:
    """3,000 people in raw columns, with nulls."""
    return adult_frame(spark, head(a9a_split.train, 3000), 1).cache()


class TestPipelines:
    """Pipeline([... feature stages ..., FactorizationMachine(...)])."""

    @pytest.mark.processes
    def test_nested_stages_of_raw_columns_score_where_only_pyspark_ml_was_imported(
        self, people: DataFrame, tmp_path: Path
    ) -> None:
        indexed = [f"{name}_index" for name in COLUMNS]
        encoded = [f"{name}_one_hot" for name in COLUMNS]
        features = Pipeline(stages=[
            StringIndexer(inputCols=COLUMNS, outputCols=indexed, handleInvalid="keep"),
            OneHotEncoder(inputCols=indexed, outputCols=encoded, dropLast=False),
            VectorAssembler(inputCols=encoded, outputCol="features"),
        ])  # fmt: skip
        unfitted = str(tmp_path / "unfitted")
        Pipeline(stages=[features, machine()]).write().overwrite().save(unfitted)
        model = Pipeline.load(unfitted).fit(people)
        model.write().overwrite().save(str(tmp_path / "model"))
        few = people.limit(20).coalesce(1)
        few.write.parquet(str(tmp_path / "rows"))
        program = PROGRAM.format(
            where=where_to_score(), path=str(tmp_path / "model"), rows=str(tmp_path / "rows")
        )
        environment = {name: value for name, value in os.environ.items() if "REMOTE" not in name}

        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400,
        )  # fmt: skip

        assert done.returncode == 0, done.stderr[-3000:]
        assert f"scores {[float(s).hex() for s in scores(model, few)]}" in done.stdout
        assert (
            model.stages[-1].evaluate(model.stages[0].transform(people)).metrics["roc_auc"] > 0.87
        )

    def test_metadata_gives_the_number_of_features_and_describes_the_outputs(
        self, people: DataFrame
    ) -> None:
        hasher = FeatureHasher(inputCols=list(CATEGORIES), outputCol="features", numFeatures=2**12)
        model = Pipeline(stages=[hasher, machine()]).fit(people)

        described = {f.name: f.metadata for f in model.transform(people).schema.fields}

        assert model.stages[-1].numFeatures == 2**12
        for name in ("predicted_label", "prediction"):
            assert described[name]["ml_attr"]["num_vals"] == 2
        assert described["score"]["ml_attr"]["type"] == "numeric"


class TestCrossValidation:
    """CrossValidator and TrainValidationSplit over any Param, in threads, saved and loaded."""

    def test_threads_keep_every_model_and_all_comes_back(
        self, adult: DataFrame, adult_test: DataFrame, tmp_path: Path
    ) -> None:
        fm = machine(linearLr=STILL, factorsLr=STILL)
        grid = ParamGridBuilder().addGrid(fm.linearLr, [STILL, MOVING]).build()
        folds = CrossValidator(
            estimator=fm, estimatorParamMaps=grid, numFolds=2, parallelism=3, seed=5,
            evaluator=FMEvaluator(metricName="test:binary_classification_cross_entropy"),
            collectSubModels=True,
        )  # fmt: skip
        folds.save(str(tmp_path / "folds"))
        model = CrossValidator.load(str(tmp_path / "folds")).fit(adult)
        model.save(str(tmp_path / "model"))

        loaded = CrossValidatorModel.load(str(tmp_path / "model"))

        assert model.bestModel.getLinearLr() == MOVING
        assert model.avgMetrics[1] < 0.4 < model.avgMetrics[0]
        assert [[m.getLinearLr() for m in models] for models in model.subModels] == [
            [STILL, MOVING], [STILL, MOVING],
        ]  # fmt: skip
        assert loaded.avgMetrics == model.avgMetrics
        assert np.array_equal(scores(loaded, adult_test), scores(model, adult_test))
        kept = FactorizationMachineModel.load(str(tmp_path / "model" / "subModels/fold0/1"))
        assert_same_model(kept, model.subModels[0][1])

    @pytest.mark.parametrize(
        ("name", "good"),
        [
            ("test:binary_f_beta", 0.6),
            ("test:rmse", None),
        ],
    )
    def test_a_split_is_judged_by_sagemaker_s_objectives(
        self, adult: DataFrame, stars: DataFrame, tmp_path: Path, name: str, good: float | None
    ) -> None:
        kind = "regressor" if good is None else "binary_classifier"
        rates = dict.fromkeys(("biasLr", "linearLr", "factorsLr"), MOVING)
        fm = machine(predictorType=kind, epochs=2, **rates)
        grid = [{fm.epochs: 1, fm.linearLr: STILL, fm.biasLr: STILL, fm.factorsLr: STILL}, {}]
        split = TrainValidationSplit(
            estimator=fm, estimatorParamMaps=grid, evaluator=FMEvaluator(metricName=name), seed=3,
            parallelism=2,
        )  # fmt: skip

        model = split.fit(stars if good is None else adult)

        model.save(str(tmp_path / "model"))
        loaded = TrainValidationSplitModel.load(str(tmp_path / "model"))
        assert loaded.validationMetrics == model.validationMetrics
        assert_same_model(loaded.bestModel, model.bestModel)
        assert model.bestModel.getLinearLr() == MOVING
        assert model.validationMetrics[1] < 1.05 if good is None else (
            model.validationMetrics[1] > good
        )  # fmt: skip

    def test_a_grid_packs_the_rows_once_and_gives_the_models_of_separate_fits(
        self, liked: DataFrame, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fm = machine(epochs=2)
        grid = [{fm.factorsLr: rate, fm.numFactors: k} for rate in (0.1, 0.2) for k in (2, 4)]
        alone = [fm.fit(liked, chosen) for chosen in grid]
        packed: list[int] = []
        pack = trainer.pack

        def count(*args: Any, **kwargs: Any) -> Any:
            packed.append(1)
            return pack(*args, **kwargs)

        monkeypatch.setattr(trainer, "pack", count)

        together = fm.fit(liked, grid)

        assert len(packed) == 1
        for one, other in zip(alone, together, strict=True):
            assert_same_model(one, other)


class TestTuning:
    """spark_fm.tune and ``spark-fm tune``: the command is shown in tests/cli/test_tune.py."""

    def test_a_search_finds_better_params_and_resumes_after_an_interruption(
        self, apps: DataFrame, tmp_path: Path
    ) -> None:
        # Weak steps to begin with: there is something to find.
        fm = machine(optimizer="adagrad", epochs=4, linearLr=0.01, factorsLr=0.01, patience=0)
        space = {"linearLr": (0.01, 1.0, "log"), "factorsLr": (0.01, 1.0, "log")}
        settings: dict[str, Any] = {"space": space, "parallel": 3, "folder": tmp_path / "trials"}
        tune(fm, apps, trials=3, **settings)
        cut = (tmp_path / "trials" / "trials.jsonl").read_text()

        found = tune(fm, apps, trials=6, **settings)

        assert (tmp_path / "trials" / "trials.jsonl").read_text().startswith(cut)
        assert found.best.value < 0.9 * found.trials[0].value
        assert len(found.frame) == 6
        again = FactorizationMachine(**found.bestParams).fit(apps)
        assert_same_model(again, found.model)
        assert (tmp_path / "trials" / "trials.csv").read_text() == found.frame.to_csv(index=False)
        assert (tmp_path / "trials" / "trials.png").read_bytes().startswith(b"\x89PNG")


class TestWeights:
    """A row of weight 3 is three rows: in trainer, averaging and metrics."""

    def test_weights_are_repetitions(
        self, spark: SparkSession, a9a_split: Split, adult_test: DataFrame
    ) -> None:
        rows = head(a9a_split.train, 8000)
        times = np.where(rows.y == 1, 3, 1)
        order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(times)), times))
        repeated = to_frame(spark, Rows(rows.X[order], rows.y[order])).cache()
        weight = F.when(F.col("label") == 1, 3.0).otherwise(1.0)
        weighted = to_frame(spark, rows).withColumn("w", weight).cache()
        test = adult_test.withColumn("w", weight)
        thrice = adult_test.unionAll(adult_test.where("label = 1")).unionAll(
            adult_test.where("label = 1")
        )
        # Steps so small that three of them are one of three times the length.
        rates = {"biasLr": 0.02, "linearLr": 0.02, "factorsLr": 0.02, "epochs": 6}
        params = {"numWorkers": 2, "averagingsPerEpoch": 4, "refit": "never", **rates}

        by_weight = machine(weightCol="w", **params).fit(weighted)
        by_rows = machine(**params).fit(repeated)
        plain = machine(**params).fit(weighted)

        measured = [model.evaluate(thrice).metrics for model in (by_weight, by_rows, plain)]
        assert measured[0]["logloss"] == pytest.approx(measured[1]["logloss"], rel=0.01)
        assert measured[2]["logloss"] > 1.1 * measured[1]["logloss"]
        for name, value in by_weight.evaluate(test).metrics.items():
            if name != "rows":
                assert value == pytest.approx(measured[0][name], rel=1e-9), name


class TestValidationMetrics:
    """Every epoch has all metrics; training stops early on any of them."""

    @pytest.mark.parametrize("metric", ["roc_auc", "rmse"])
    def test_training_stops_early_by_the_metric_and_keeps_its_best_epoch(
        self, apps: DataFrame, stars: DataFrame, metric: str
    ) -> None:
        is_value = metric == "rmse"
        model = machine(
            predictorType="regressor" if is_value else "binary_classifier", epochs=60, patience=2,
            validationMetric=metric, validationFraction=0.25, linearLr=0.5, factorsLr=0.5, tol=0.0,
            refit="never",
        ).fit(stars if is_value else apps)  # fmt: skip

        history = model.summary.history
        curve = history[f"validation_{metric}"]
        best = curve.idxmin() if is_value else curve.idxmax()
        assert model.summary.bestEpoch == best
        assert len(history) == best + 3 < 60


class TestWarmStart:
    """Training continues from a model: bit for bit, with new features, with other rates."""

    def test_five_and_five_epochs_are_ten(self, stars: DataFrame, tmp_path: Path) -> None:
        def fm(epochs: int) -> FactorizationMachine:
            return machine(
                predictorType="regressor", epochs=epochs, patience=0, keepTrainingState=True
            )

        first = fm(5).fit(stars)
        first.save(str(tmp_path / "five"))

        assert_same_model(fm(5).fit(stars, warmStart=str(tmp_path / "five")), fm(10).fit(stars))
        assert_same_model(fm(5).fit(stars, warmStart=first), fm(10).fit(stars))

    def test_new_features_and_other_rates_go_on_from_what_is_known(
        self, spark: SparkSession, liked: DataFrame, liked_rows: Rows
    ) -> None:
        is_known = liked_rows.X.indices.reshape(-1, 2)[:, 0] < 500  # by the user
        known = to_frame(spark, Rows(liked_rows.X[is_known], liked_rows.y[is_known]))
        old = machine(epochs=4).fit(known)
        new = machine(epochs=2, factorsLr=0.05, linearLr=0.05, refit="never")

        continued, anew = new.fit(liked, warmStart=old), new.fit(liked)

        assert continued.summary.facts["numFeaturesSeen"] > old.summary.facts["numFeaturesSeen"]
        losses = [model.summary.history["trainLoss"][0] for model in (continued, anew)]
        assert losses[0] < losses[1]


class TestCheckpoints:
    """A job killed in epoch 7 resumes by the same command (the process: tests/ml)."""

    def test_a_training_stopped_in_epoch_7_ends_with_the_same_model(
        self, apps: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class StoppedError(Exception):
            pass

        params = {"epochs": 10, "patience": 0, "numWorkers": 2, "refit": "never"}
        whole = machine(**params).fit(apps)
        fm = machine(checkpointDir=str(tmp_path / "checkpoints"), **params)
        log_epoch = Progress.__call__
        trained: list[int] = []

        def stop_in_epoch_7(self: Progress, report: EpochReport, of: str = "") -> None:
            log_epoch(self, report, of)
            trained.append(report.record.epoch)
            if trained[0] == 0 and report.record.epoch == 6:
                raise StoppedError

        monkeypatch.setattr(Progress, "__call__", stop_in_epoch_7)
        with pytest.raises(StoppedError):
            fm.fit(apps)
        with pytest.raises(CheckpointError, match=r"factorsLr is 0\.2 there and 0.1 here"):
            fm.fit(apps, {fm.factorsLr: 0.1})
        with pytest.raises(CheckpointError, match="the rows"):
            fm.fit(apps.limit(5000))
        trained.clear()

        resumed = fm.fit(apps)

        assert trained[0] >= 6
        assert_same_model(resumed, whole)
        assert not list((tmp_path / "checkpoints").iterdir())


class TestSummary:
    """What a training did: by epoch, in all, measured, drawn, and after save and load."""

    def test_a_loaded_summary_tells_measures_and_draws(
        self, adult: DataFrame, tmp_path: Path
    ) -> None:
        model = machine(numWorkers=2, validationFraction=0.3, refit="never").fit(adult)
        model.save(str(tmp_path / "model"))

        loaded = FactorizationMachineModel.load(str(tmp_path / "model"))

        summary = loaded.summary
        assert summary == model.summary
        wanted = {"trainLoss", "validationLoss", "validation_roc_auc", "biasLr", "linearLr",
                  "factorsLr", "broadcastSeconds", "trainSeconds", "mergeSeconds",
                  "validateSeconds"}  # fmt: skip
        assert wanted <= set(summary.history.columns)
        facts = summary.facts
        assert (facts["numRows"], facts["numFeatures"], facts["skippedRows"]) == (4000, 123, 0)
        assert (facts["numWorkers"], facts["rejectedAttempts"]) == (2, 0)
        assert facts["averagingsPerEpoch"] >= 1
        assert facts["packSeconds"] > 0
        assert facts["storeSeconds"] > 0
        figure = summary.plot(str(tmp_path / "summary.png"))
        assert [axes.get_title() for axes in figure.axes] == [
            "Loss by epoch", "ROC", "Precision and recall", "Calibration",
        ]  # fmt: skip
        assert summary.evaluate(adult).metrics == model.evaluate(adult).metrics
