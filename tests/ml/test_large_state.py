"""A training with more than 300 MB of state: fitted, scored, saved, loaded, piped and tuned.

On Spark Connect one message holds 128 MiB, and on either a driver has one or two GB: such
a state goes by ways that small ones never take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.tuning import CrossValidator
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import Rows, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.learner.state import Layout
from tests.ml.builders import column

# Run by itself (``pytest -m large``): a small driver's heap may not outlive it.
pytestmark = pytest.mark.large

N_FEATURES, K = 1_200_000, 64
N_ROWS, NNZ = 100_000, 24  # each feature twice


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Rows of 24 features whose label is the sign of a planted linear score."""
    rng = np.random.default_rng(3)
    ids = np.concatenate([rng.permutation(N_FEATURES) for _ in range(2)])
    indptr = np.arange(0, N_ROWS * NNZ + 1, NNZ)
    matrix = sp.csr_matrix((np.ones(len(ids)), ids, indptr), shape=(N_ROWS, N_FEATURES))
    matrix.sum_duplicates()
    labels = matrix @ rng.normal(size=N_FEATURES) > 0
    return Rows(matrix, labels.astype(np.float64))


@pytest.fixture(scope="module")
def large(spark: SparkSession, rows: Rows) -> DataFrame:
    return to_frame(spark, rows, 2).cache()


def machine(**params: object) -> FactorizationMachine:
    fixed = {"numFactors": K, "epochs": 1, "validationFraction": 0.0, "seed": 1}
    return FactorizationMachine(**{**fixed, **params})


def accuracy(model: FactorizationMachineModel, rows: Rows) -> float:
    return float(((model.predict(rows.X) >= 0.5) == rows.y).mean())


@pytest.fixture(scope="module")
def pipeline(large: DataFrame) -> PipelineModel:
    return Pipeline(stages=[machine()]).fit(large)


def test_the_state_is_as_large_as_this_file_says(pipeline: PipelineModel) -> None:
    layout = Layout(K, "adagrad")

    assert N_FEATURES * layout.n_synced * 4 > 300e6
    assert pipeline.stages[0].weights.table.nbytes > 300e6
    assert pipeline.stages[0].summary.facts["numFeaturesSeen"] == N_FEATURES


def test_a_pipeline_scores_saves_and_loads_it(
    pipeline: PipelineModel, large: DataFrame, rows: Rows, tmp_path: Path
) -> None:
    model = pipeline.stages[0]
    assert accuracy(model, rows) > 0.7
    head = large.limit(500).cache()

    pipeline.write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))

    np.testing.assert_array_equal(loaded.stages[0].weights.table, model.weights.table)
    scores = column(loaded.transform(head), "score")
    assert len(scores) == 500
    np.testing.assert_array_equal(scores, column(pipeline.transform(head), "score"))
    assert ((scores >= 0.5) == column(head, "label")).mean() > 0.6


def test_two_workers_exchange_it(large: DataFrame, rows: Rows) -> None:
    model = machine(numWorkers=2, averagingsPerEpoch=1).fit(large)

    assert model.summary.facts["numWorkers"] == 2
    assert accuracy(model, rows) > 0.7


def test_a_cross_validator_chooses_among_such_models(large: DataFrame) -> None:
    fm = machine()
    folds = CrossValidator(
        estimator=fm, estimatorParamMaps=[{fm.linearLr: 0.1}], numFolds=2, seed=1,
        evaluator=BinaryClassificationEvaluator(rawPredictionCol="score"),
    )  # fmt: skip

    chosen = folds.fit(large)

    assert chosen.avgMetrics[0] > 0.5
    assert chosen.bestModel.weights.table.nbytes > 300e6
