"""Train one job's files twice, as SageMaker does and with our defaults, and compare.

Shared by the examples of SageMaker's own tutorials.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import spark_fm
from examples.real_sets import Rows
from examples.session import local_session
from spark_fm import FactorizationMachine
from spark_fm.ml.evaluation import FMEvaluation
from spark_fm.recordio import write_records


def evaluations(
    hyperparameters: dict[str, str],
    train: Rows,
    test: Rows,
    *,
    dense: bool,
    columns: dict[str, dict[str, Any]],
) -> dict[str, FMEvaluation]:
    """Write both channels as recordIO-protobuf, train and evaluate a model for each column.

    ``columns`` are, by heading, ``{"sagemaker": True, **params}`` or Params on our defaults.
    """
    spark = local_session("local[*]")
    spark_fm.register(spark)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        frames = []
        for name, rows in (("train", train), ("test", test)):
            path = str(Path(folder) / f"{name}.pbr")
            features = rows.X.astype("float32")
            features = features.toarray() if dense else features
            write_records(path, features, rows.y.astype("float32"))
            frames.append(spark.read.format("recordio-protobuf").load(path))
        for heading, settings in columns.items():
            params = dict(settings)
            if params.pop("sagemaker", False):
                machine = FactorizationMachine.from_hyperparameters(hyperparameters)
            else:
                machine = FactorizationMachine(
                    predictorType=hyperparameters["predictor_type"],
                    numFactors=int(hyperparameters["num_factors"]),
                )
            model = machine.setParams(**params).fit(frames[0])
            results[heading] = model.evaluate(frames[1])
    spark.stop()
    return results
