"""Larger real sets, which do not ship: MovieLens 100K and MNIST, as their sources publish them.

The folder is named by the environment variable ``SPARK_FM_DATA``.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType


@dataclass(frozen=True)
class Rows:
    """Rows of a split: ``X`` of shape (n_rows, n_features), ``y`` of shape (n_rows,)."""

    X: sp.csr_matrix
    y: NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """A set with the settings its figures are taken at."""

    name: str
    train: Rows
    test: Rows
    predictor_type: str
    num_factors: int
    clip: tuple[float, float] | None = None


def data_folder() -> Path:
    """Return the folder of the larger sets; raise FileNotFoundError saying what to set."""
    folder = os.environ.get("SPARK_FM_DATA")
    if not folder or not Path(folder).is_dir():
        raise FileNotFoundError(
            f"SPARK_FM_DATA={folder!r} is not a folder; set it to the folder that holds a9a, "
            "ml-100k, frappe, criteo and mnist"
        )
    return Path(folder)


def ml100k_regression() -> Split:
    """Ratings 1 to 5 of one-hot user and item: 90,570 / 9,430 rows, 2,625 features."""
    return ml100k("ua", "ml100k-regression", regression=True)


def ml100k_binary() -> Split:
    """Whether a rating is 4 or more."""
    return ml100k("ua", "ml100k-binary", regression=False)


def mnist0() -> Split:
    """Whether a digit is 0: 50,000 / 10,000 rows, 784 pixels scaled to [0, 1]."""
    parts = [mnist("train", 50_000), mnist("t10k", 10_000)]
    train, test = (Rows(rows.X, (rows.y == 0).astype(np.float64)) for rows in parts)
    return Split("mnist0", train, test, "binary_classifier", 10)


def mnist(part: str, n_rows: int) -> Rows:
    """Load the first images of "train" or "t10k", pixels scaled to [0, 1]; labels 0 to 9."""
    folder = data_folder() / "mnist"
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz")[:n_rows]
    digits = _idx(folder / f"{part}-labels-idx1-ubyte.gz")[:n_rows]
    matrix = sp.csr_matrix(pixels.reshape(len(pixels), -1) / 255.0)
    return Rows(matrix, digits.astype(np.float64))


def to_frame(spark: SparkSession, rows: Rows, n_partitions: int = 2) -> DataFrame:
    """Return a DataFrame of label and sparse vector features."""
    X = rows.X
    lists = [
        pa.ListArray.from_arrays(pa.array(X.indptr, pa.int32()), child)
        for child in (pa.array(X.indices, pa.int32()), pa.array(X.data, pa.float64()))
    ]
    table = pa.table({"label": rows.y, "indices": lists[0], "values": lists[1]})
    schema = StructType([StructField("label", DoubleType()), StructField("features", VectorUDT())])
    frame = spark.createDataFrame(table).repartition(n_partitions)
    return frame.mapInArrow(_Vectors(X.shape[1]), schema)


@dataclass(frozen=True)
class _Vectors:
    """Build sparse vectors from lists; runs on executors."""

    size: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            n_rows = batch.num_rows
            indices, values = (batch.column(name) for name in ("indices", "values"))
            fields = [
                pa.field("type", pa.int8(), nullable=False),
                pa.field("size", pa.int32()),
                pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
                pa.field("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
            ]
            children = [
                pa.array(np.zeros(n_rows, np.int8)),
                pa.array(np.full(n_rows, self.size, np.int32)),
                indices.cast(fields[2].type),
                values.cast(fields[3].type),
            ]
            vectors = pa.StructArray.from_arrays(children, fields=fields)
            yield pa.RecordBatch.from_arrays(
                [batch.column("label"), vectors],
                schema=pa.schema(
                    [pa.field("label", pa.float64()), pa.field("features", vectors.type)]
                ),
            )


def ml100k(split: str, name: str, *, regression: bool) -> Split:
    """Load the published split "ua" or "ub"; labels are ratings, or whether they are 4 or 5."""
    parts = []
    for part in ("base", "test"):
        with gzip.open(data_folder() / "ml-100k" / f"{split}.{part}.gz", "rt") as lines:
            table = np.array([[int(word) for word in line.split()[:3]] for line in lines])
        n_rows = len(table)
        indices = np.stack([table[:, 0] - 1, 943 + table[:, 1] - 1], axis=1).ravel()
        matrix = sp.csr_matrix(
            (np.ones(2 * n_rows), indices, np.arange(0, 2 * n_rows + 1, 2)), shape=(n_rows, 2625)
        )
        ratings = table[:, 2].astype(np.float64)
        parts.append(Rows(matrix, ratings if regression else (ratings >= 4).astype(np.float64)))
    if regression:
        return Split(name, parts[0], parts[1], "regressor", 8, clip=(1.0, 5.0))
    return Split(name, parts[0], parts[1], "binary_classifier", 16)


def _idx(path: Path) -> NDArray[np.uint8]:
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
