"""Small DataFrames from planted structure, and estimators that train fast on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType

from spark_fm import FactorizationMachine
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.spec import LossName
from tests.builders import planted_batch, planted_weights

N_FEATURES = 20
K = 4  # every fit of this folder has these factors, so that few kernels are compiled

# What a classifier's transform adds; a regressor's are the first and the last.
OUTPUTS = ["score", "predicted_label", "probability", "rawPrediction", "prediction"]

SCHEMA = StructType(
    [StructField("label", DoubleType()), StructField("features", VectorUDT(), True)]
)

# A legal value other than the default for every Param.
VALUES: dict[str, Any] = {
    "featuresCol": "f",
    "labelCol": "y",
    "weightCol": "w",
    "validationIndicatorCol": "held_out",
    "predictionCol": "found",
    "probabilityCol": "chances",
    "rawPredictionCol": "margins",
    "scoreCol": "s",
    "predictedLabelCol": "p",
    "threshold": 0.25,
    "predictorType": "regressor",
    "numFactors": 3,
    "featureDim": 100,
    "useBias": False,
    "useLinear": False,
    "solver": "gibbs",
    "optimizer": "adam",
    "epochs": 4,
    "shuffle": False,
    "adagradInit": 0.5,
    "miniBatchSize": 8,
    "biasLr": 0.31,
    "linearLr": 0.32,
    "factorsLr": 0.33,
    "biasWd": 0.01,
    "linearWd": 0.02,
    "factorsWd": 0.03,
    "decayFrequencyPower": 0.25,
    "clipGradient": 2.0,
    "eps": 1e-6,
    "rescaleGrad": 0.5,
    "averageEpochs": False,
    "sageMakerTraining": True,
    "standardization": False,
    "standardizeLabel": False,
    "biasInitMethod": "normal",
    "biasInitScale": 0.11,
    "biasInitSigma": 0.12,
    "biasInitValue": 0.13,
    "linearInitMethod": "uniform",
    "linearInitScale": 0.21,
    "linearInitSigma": 0.22,
    "linearInitValue": 0.23,
    "factorsInitMethod": "uniform",
    "factorsInitScale": 0.31,
    "factorsInitSigma": 0.32,
    "factorsInitValue": 0.33,
    "numWorkers": 2,
    "averagingsPerEpoch": 3,
    "aggregationDepth": 2,
    "device": "auto",
    "validationFraction": 0.2,
    "validationMetric": "mae",
    "patience": 3,
    "refit": "never",
    "handleInvalid": "skip",
    "keepTrainingState": True,
    "keepPosterior": True,
    "checkpointDir": "checkpoints",
    "checkpointInterval": 3,
    "seed": 11,
    "tol": 0.5,
}


def fast_fm(**changes: Any) -> FactorizationMachine:
    """Return an estimator that trains in one job of two epochs, with some Params changed."""
    params = {"numFactors": K, "epochs": 2, "validationFraction": 0.0, "seed": 7}
    return FactorizationMachine(**{**params, **changes})


def planted_rows(n_rows: int, *, seed: int, loss: LossName = "logistic") -> CsrBatch:
    """Draw rows of 20 features whose labels follow a planted model of 4 factors."""
    truth = planted_weights(N_FEATURES, K, seed=seed)
    return planted_batch(truth, n_rows, seed=seed + 1, loss=loss)


def sparse_vectors(batch: CsrBatch, size: int = N_FEATURES) -> list[SparseVector]:
    """Return a batch's rows as Spark vectors."""
    pairs = zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    return [
        Vectors.sparse(size, batch.indices[a:b].tolist(), batch.values[a:b].tolist())
        for a, b in pairs
    ]


def frame_of(spark: SparkSession, rows: list[tuple[object, object]]) -> DataFrame:
    """Return a DataFrame of (label, vector or None) in one partition."""
    return spark.createDataFrame(rows, SCHEMA).coalesce(1)


def planted_frame(
    spark: SparkSession, n_rows: int, *, seed: int, loss: LossName = "logistic"
) -> DataFrame:
    """Return planted rows as a DataFrame of label and features in one partition."""
    batch = planted_rows(n_rows, seed=seed, loss=loss)
    return frame_of(spark, list(zip(batch.labels.tolist(), sparse_vectors(batch), strict=True)))


def column(frame: DataFrame, name: str) -> np.ndarray:
    """Return a numeric column in the frame's row order; null becomes NaN."""
    values = [row[0] for row in frame.select(name).collect()]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def broken_frame(
    spark: SparkSession,
    rows: list[tuple[float, list[int], list[float]]],
    *,
    size: int = N_FEATURES,
) -> DataFrame:
    """Return (label, indices, values) rows as vectors that Spark's classes refuse to build.

    They leave a task as Arrow structs, as a faulty job upstream would leave them.
    """
    vector = pa.struct(
        [
            pa.field("type", pa.int8(), nullable=False),
            pa.field("size", pa.int32()),
            pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
            pa.field("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
        ]
    )

    def make(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            items = [
                {"type": 0, "size": size, "indices": indices, "values": values}
                for _, indices, values in rows
            ]
            labels = [label for label, _, _ in rows]
            columns = [pa.array(labels, pa.float64()), pa.array(items, vector)]
            fields = [pa.field("label", pa.float64()), pa.field("features", vector)]
            yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))

    return spark.range(1).coalesce(1).mapInArrow(make, SCHEMA)


def rating_rows(n_rows: int, *, seed: int) -> list[tuple[float, SparseVector]]:
    """Draw ratings of 60 users and 40 items, no pair twice, with noise of deviation 0.7."""
    users, items = 60, 40
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(users * items)[:n_rows]
    of_user, of_item = rng.normal(0, 0.7, (users, 2)), rng.normal(0, 0.7, (items, 2))
    user, item = pairs // items, pairs % items
    labels = 3 + (of_user[user] * of_item[item]).sum(1) + rng.normal(0, 0.7, len(pairs))
    vectors = [
        Vectors.sparse(users + items, [int(u), users + int(i)], [1.0, 1.0])
        for u, i in zip(user, item, strict=True)
    ]
    return list(zip(labels.tolist(), vectors, strict=True))
