"""Ten handwritten digits by OneVsRest over the binary classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import OneVsRest, OneVsRestModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import mnist, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from tests.ml.builders import column, fast_fm

# Guessing, or margins in the order of other classes, gives 0.1; two classes mixed up 0.8.
GOOD_ACCURACY = 0.87


@pytest.fixture(scope="module")
def digits(spark: SparkSession, data_folder: Path) -> tuple[DataFrame, DataFrame]:
    """3,000 training and 1,000 test images of MNIST, 784 pixels scaled to [0, 1]."""
    parts = [("train", 3000), ("t10k", 1000)]
    return tuple(to_frame(spark, mnist(part, n_rows), 1).cache() for part, n_rows in parts)


def machine() -> FactorizationMachine:
    """Return a classifier; OneVsRest reads its rawPrediction, the second of two margins."""
    return fast_fm(epochs=4, linearLr=0.1, factorsLr=0.1)


def one_vs_rest(**changes: object) -> OneVsRest:
    return OneVsRest(classifier=machine(), **{"parallelism": 2, **changes})


@pytest.fixture(scope="module")
def fitted(digits: tuple[DataFrame, DataFrame]) -> OneVsRestModel:
    return one_vs_rest().fit(digits[0])


@pytest.fixture(scope="module")
def of_three(digits: tuple[DataFrame, DataFrame]) -> OneVsRestModel:
    """What tells 0, 1 and 2 from each other."""
    return one_vs_rest().fit(digits[0].where("label < 3"))


def accuracy(scored: DataFrame) -> float:
    # Spark's evaluators copy the plan on Connect, and refuse one of ten models as too deep;
    # scored.localCheckpoint() is the way round it.
    hits = F.avg((F.col("label") == F.col("prediction")).cast("double"))
    return scored.select(hits).first()[0]


def test_ten_digits_are_distinguished(
    fitted: OneVsRestModel, digits: tuple[DataFrame, DataFrame]
) -> None:
    scored = fitted.transform(digits[1])

    assert accuracy(scored) > GOOD_ACCURACY
    assert scored.columns == ["label", "features", "rawPrediction", "prediction"]
    assert {row[0] for row in scored.select("prediction").distinct().collect()} == set(range(10))


def test_spark_s_evaluator_judges_what_is_checkpointed(
    fitted: OneVsRestModel, digits: tuple[DataFrame, DataFrame]
) -> None:
    scored = fitted.transform(digits[1].limit(300)).localCheckpoint()

    judged = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(scored)

    assert judged == pytest.approx(accuracy(scored))


def test_a_model_a_class_tells_it_from_the_rest(
    fitted: OneVsRestModel, digits: tuple[DataFrame, DataFrame]
) -> None:
    test = digits[1]
    scored = fitted.transform(test).select(vector_to_array("rawPrediction").alias("margins"))
    margins = np.array([row[0] for row in scored.collect()])

    assert [type(model) for model in fitted.models] == [FactorizationMachineModel] * 10
    labels = column(test, "label")
    for digit in (0, 7):
        model = fitted.models[digit]
        scores = column(model.transform(test), "score")
        assert np.mean((scores > 0.5) == (labels == digit)) > 0.93
        assert 1 / (1 + np.exp(-margins[:, digit])) == pytest.approx(scores, abs=1e-6)


def test_threads_change_nothing(
    of_three: OneVsRestModel, digits: tuple[DataFrame, DataFrame]
) -> None:
    alone = one_vs_rest(parallelism=1).fit(digits[0].where("label < 3"))

    for model, other in zip(alone.models, of_three.models, strict=True):
        assert np.array_equal(model.factors, other.factors)


def test_weights_reach_every_model(digits: tuple[DataFrame, DataFrame]) -> None:
    train = (
        digits[0].where("label < 3").withColumn("w", F.when(F.col("label") == 1, 0.0).otherwise(1))
    )

    model = one_vs_rest(weightCol="w").fit(train)

    predicted = model.transform(digits[1].where("label < 3"))
    # Rows of weight 0 count for nothing: no digit is taken for a 1.
    assert predicted.where("prediction = 1").count() == 0
    assert accuracy(predicted.where("label != 1")) > 0.95


def test_it_is_saved_and_loaded(
    of_three: OneVsRestModel, digits: tuple[DataFrame, DataFrame], tmp_path: Path
) -> None:
    of_three.save(str(tmp_path / "model"))
    of_three.write().overwrite().save(str(tmp_path / "model"))
    loaded = OneVsRestModel.load(str(tmp_path / "model"))

    assert isinstance(loaded.getClassifier(), FactorizationMachine)
    scored = [column(model.transform(digits[1]), "prediction") for model in (of_three, loaded)]
    assert np.array_equal(*scored)


def test_the_estimator_is_saved_and_loaded(tmp_path: Path) -> None:
    one_vs_rest().save(str(tmp_path / "estimator"))

    loaded = OneVsRest.load(str(tmp_path / "estimator"))

    assert isinstance(loaded.getClassifier(), FactorizationMachine)
    assert loaded.getClassifier().getEpochs() == 4
    assert loaded.getParallelism() == 2


def test_it_is_a_stage_of_a_pipeline(digits: tuple[DataFrame, DataFrame], tmp_path: Path) -> None:
    train, test = (part.where("label < 3") for part in digits)
    model = Pipeline(stages=[one_vs_rest()]).fit(train)

    model.save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))

    assert accuracy(loaded.transform(test)) > 0.95
