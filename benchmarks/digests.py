"""Digests of the parameters of many kinds of training, to compare before and after a change.

``python -m benchmarks.digests --out before.json`` writes one digest a training;
``--against before.json`` says which differ and exits with 1 if any does. Digests hold for one
machine: another processor adds floats in vectors of another width.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.local import local_session
from spark_fm import FactorizationMachine, FactorizationMachineModel, tune

N_ROWS, N_USERS, N_ITEMS = 12_000, 400, 250


def digest(model: FactorizationMachineModel) -> str:
    """Return a SHA-256 of bias, linear weights, factors and features."""
    arrays = [np.float64(model.bias), model.linear, model.factors]
    if model.features is not None:
        arrays.append(model.features)
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def write_rows(folder: Path) -> None:
    """Write users, items, a number and labels of both kinds, in four files."""
    rng = np.random.default_rng(5)
    user = rng.integers(0, N_USERS, N_ROWS)
    item = (N_ITEMS * rng.random(N_ROWS) ** 2).astype(int)
    number = rng.normal(size=N_ROWS)
    left = rng.normal(size=(N_USERS, 3))
    right = rng.normal(size=(N_ITEMS, 3))
    raw = (left[user] * right[item]).sum(1) + 0.3 * number
    table = pa.table(
        {
            "user": user, "item": item, "number": number,
            "value": 3.0 + raw + 0.2 * rng.normal(size=N_ROWS),
            "click": (rng.random(N_ROWS) < 1 / (1 + np.exp(-raw))).astype(float),
            "weight": rng.integers(1, 4, N_ROWS).astype(float),
            "held_out": rng.random(N_ROWS) < 0.2,
        }
    )  # fmt: skip
    for part in range(4):
        pq.write_table(table[part * 3000 : (part + 1) * 3000], folder / f"part-{part}.parquet")


def read_rows(spark: SparkSession, folder: Path) -> DataFrame:
    """Return the rows with a sparse vector column ``features`` and a dense one."""
    size = N_USERS + N_ITEMS + 1
    frame = spark.read.parquet(str(folder)).coalesce(2)
    vector = F.udf(
        lambda u, i, x: Vectors.sparse(size, [u, N_USERS + i, size - 1], [1.0, 1.0, x]),
        VectorUDT(),
    )
    dense = array_to_vector(F.array("number", F.col("number") * F.col("number"), "weight"))
    return frame.withColumn("features", vector("user", "item", "number")).withColumn("dense", dense)


def machine(**changes: Any) -> FactorizationMachine:
    """Return an estimator with five factors, with some Params changed."""
    fixed = {"numFactors": 5, "epochs": 4, "seed": 3, "labelCol": "click"}
    return FactorizationMachine(**{**fixed, **changes})


def trainings(rows: DataFrame, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each training and what makes its model."""
    value = {"labelCol": "value", "predictorType": "regressor"}
    cases: dict[str, dict[str, Any]] = {
        "classifier, defaults": {},
        "regressor, defaults": value,
        "classifier, sgd, one task": {"optimizer": "sgd", "refit": "never"},
        "regressor, sgd, 2 workers": {**value, "optimizer": "sgd", "numWorkers": 2,
                                     "linearLr": 0.01, "factorsLr": 0.01},
        "classifier, adam, 2 workers": {"optimizer": "adam", "numWorkers": 2},
        "regressor, adam, one task": {**value, "optimizer": "adam"},
        "classifier, adagrad, 8 workers": {"numWorkers": 8, "averagingsPerEpoch": 3},
        "regressor, adagrad, 8 workers": {**value, "numWorkers": 8},
        "classifier, averaged on executors": {"numWorkers": 3, "aggregationDepth": 2},
        "regressor, weights, validation column": {**value, "weightCol": "weight",
                                                  "validationIndicatorCol": "held_out"},
        "classifier, weights, 2 workers": {"weightCol": "weight", "numWorkers": 2},
        "classifier, dense rows": {"featuresCol": "dense", "epochs": 6},
        "regressor, dense rows, 2 workers": {**value, "featuresCol": "dense", "numWorkers": 2},
        "classifier, mini-batches": {"miniBatchSize": 16, "clipGradient": 0.5, "shuffle": False},
        "classifier, k = 64": {"numFactors": 64, "epochs": 2},
        "SageMaker mode": {"sageMakerTraining": True, "optimizer": "adam", "miniBatchSize": 100,
                           "featureDim": N_USERS + N_ITEMS + 1},
        "classifier, rolled back": {"optimizer": "sgd", "linearLr": 30.0, "factorsLr": 30.0},
        "classifier, rolled back, 2 workers": {"optimizer": "sgd", "linearLr": 30.0,
                                               "factorsLr": 30.0, "numWorkers": 2},
    }  # fmt: skip
    for name, params in cases.items():
        yield name, lambda params=params: machine(**params).fit(rows)

    def grid(workers: int) -> list[FactorizationMachineModel]:
        fm = machine(numWorkers=workers)
        maps: list[dict[Any, Any]] = [
            {fm.factorsLr: 0.05, fm.factorsWd: 0.1}, {fm.numFactors: 3}, {fm.optimizer: "adam"},
            {fm.epochs: 2, fm.patience: 1},
        ]  # fmt: skip
        return list(fm.fit(rows, maps))

    yield "grid", lambda: grid(0)
    yield "grid, 2 workers", lambda: grid(2)
    hyperparameters = {
        "feature_dim": str(N_USERS + N_ITEMS + 1), "num_factors": "6",
        "predictor_type": "regressor", "epochs": "3", "mini_batch_size": "50",
    }  # fmt: skip
    yield (
        "from_hyperparameters",
        lambda: (
            FactorizationMachine.from_hyperparameters(hyperparameters)
            .setParams(labelCol="value", seed=4)
            .fit(rows)
        ),
    )

    def warm(workers: int, keep: bool) -> FactorizationMachineModel:
        fm = machine(numWorkers=workers, keepTrainingState=keep, epochs=2)
        return fm.fit(rows, warmStart=fm.fit(rows))

    yield "warm start", lambda: warm(0, False)
    yield "warm start with the state, 2 workers", lambda: warm(2, True)

    def search() -> FactorizationMachineModel:
        space = {"factorsLr": [0.02, 0.1], "factorsWd": [0.0, 0.2]}
        return tune(machine(epochs=3), rows, space=space, trials=3, parallel=2).model

    yield "tune", search

    def resumed(kept: Path) -> FactorizationMachineModel:
        there = Path(tempfile.mkdtemp()) / "checkpoint"
        shutil.copytree(kept, there)
        workers = int(kept.name.rsplit("-", 1)[-1])
        fm = machine(checkpointDir=str(there), epochs=8, refit="never", numWorkers=workers)
        return fm.fit(rows)

    for kept in sorted(folder.glob("checkpoint*")):
        yield f"resumed from {kept.name}", lambda kept=kept: resumed(kept)


def main(arguments: list[str] | None = None) -> int:
    """Write or compare the digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file to compare with")
    parser.add_argument("--connect", action="store_true", help="on Spark Connect")
    parser.add_argument("--checkpoints", type=Path, default=Path("none"), help="folder")
    parser.add_argument("--only", default="", help="part of the names of the trainings to run")
    args = parser.parse_args(arguments)
    if args.connect:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        spark = SparkSession.builder.remote("local[2]").getOrCreate()
    else:
        spark = local_session()
    folder = Path(tempfile.mkdtemp())
    write_rows(folder)
    rows = read_rows(spark, folder)
    found: dict[str, Any] = {}
    for name, train in trainings(rows, args.checkpoints):
        if args.only not in name:
            continue
        made = train()
        models = made if isinstance(made, list) else [made]
        found[name] = [digest(model) for model in models]
        print(f"{name:45} {' '.join(d[:12] for d in found[name])}", flush=True)
    spark.stop()
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.against:
        before = json.loads(args.against.read_text())
        differing = [name for name in found if found[name] != before.get(name)]
        print(f"{len(found) - len(differing)} of {len(found)} equal; differing: {differing}")
        return 1 if differing else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
