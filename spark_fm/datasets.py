"""A real data set that ships with the package: UCI Adult, as a table and as vectors.

Whose income exceeds 50,000 dollars, by 14 facts of a census? 32,561 rows to train on and 16,281
to test with. B. Becker and R. Kohavi, "Adult", UCI Machine Learning Repository, 1996, licensed
under CC BY 4.0; here in the form of LIBSVM's a9a, where numbers stand in ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_fm.formats.vectors import vector_column

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["ADULT_COLUMNS", "a9a", "adult"]

ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation",
    "relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week",
    "native_country",
)  # fmt: skip
_PARTS = ("train", "test")


@overload
def adult() -> tuple[pa.Table, pa.Table]: ...


@overload
def adult(spark: SparkSession) -> tuple[DataFrame, DataFrame]: ...


def adult(spark: SparkSession | None = None) -> tuple[pa.Table | DataFrame, pa.Table | DataFrame]:
    """Return UCI Adult as it was asked: 14 columns of text and ``label``.

    Parameters
    ----------
    spark : SparkSession, optional
        Classic or Connect; without it the tables are pyarrow's, and no Spark is needed.

    Returns
    -------
    train, test : DataFrame or pyarrow Table
        The columns ``ADULT_COLUMNS``, null where the value is unknown, and ``label``: 1.0 for
        an income of more than 50,000, else 0.0.

    Examples
    --------
    >>> train, test = adult()
    >>> train.num_rows, test.num_rows, train["education"][0].as_py()
    (32561, 16281, 'Bachelors')
    """
    train, test = (_text(_table(part)) for part in _PARTS)
    if spark is None:
        return train, test
    return _frame(spark, train), _frame(spark, test)


@overload
def a9a() -> tuple[pa.Table, pa.Table]: ...


@overload
def a9a(spark: SparkSession) -> tuple[DataFrame, DataFrame]: ...


def a9a(spark: SparkSession | None = None) -> tuple[pa.Table | DataFrame, pa.Table | DataFrame]:
    """Return UCI Adult as vectors: one feature of 123 for each value of a column.

    Parameters
    ----------
    spark : SparkSession, optional
        Classic or Connect; without it the tables are pyarrow's, and no Spark is needed.

    Returns
    -------
    train, test : DataFrame or pyarrow Table
        ``label`` and ``features``, sparse vectors as LIBSVM's file a9a has them. A DataFrame's
        metadata name the features, as ``education=Masters``.
    """
    train, test = (_one_hot(_table(part)) for part in _PARTS)
    if spark is None:
        return train, test
    names = _feature_names()
    return _vectors(spark, train, names), _vectors(spark, test, names)


def _table(part: str) -> pa.Table:
    """Return the shipped file, whose columns are dictionaries in the order of a9a's features."""
    file = files("spark_fm") / "data" / f"adult-{part}.parquet"
    return pq.read_table(pa.BufferReader(file.read_bytes()))


def _text(table: pa.Table) -> pa.Table:
    kinds = [pa.string()] * len(ADULT_COLUMNS) + [pa.float64()]
    return table.cast(pa.schema(list(zip(table.column_names, kinds, strict=True))))


def _one_hot(table: pa.Table) -> pa.Table:
    codes, n_features = [], 0
    for name in ADULT_COLUMNS:
        column = table[name].combine_chunks()
        codes.append(np.asarray(column.indices.cast(pa.int32()).fill_null(-1)) + n_features)
        codes[-1][np.asarray(column.is_null())] = -1
        n_features += len(column.dictionary)
    ids = np.stack(codes, axis=1)
    indptr = np.concatenate([[0], np.cumsum((ids >= 0).sum(axis=1))])
    no_rows = np.zeros(len(ids), np.bool_)
    vectors = vector_column(
        indptr, ids[ids >= 0].astype(np.int32), np.ones(indptr[-1]),
        np.full(len(ids), n_features), is_dense=no_rows, is_null=no_rows,
    )  # fmt: skip
    return pa.table({"label": table["label"], "features": vectors})


def _feature_names() -> list[str]:
    table = _table("test")
    values = {name: table[name].combine_chunks().dictionary.to_pylist() for name in ADULT_COLUMNS}
    return [f"{name}={value}" for name in ADULT_COLUMNS for value in values[name]]


def _frame(spark: SparkSession, table: pa.Table) -> DataFrame:
    from pyspark.sql.pandas.types import from_arrow_schema

    from spark_fm.spark.session import setting

    rows, schema = table, None
    if int(setting(spark, "spark.sql.execution.arrow.maxRecordsPerBatch", "10000")) <= 0:
        # PySpark cuts a table into so many rows, and fails where that is 0 or less: no limit.
        rows = [tuple(row.values()) for row in table.to_pylist()]
        schema = from_arrow_schema(table.schema)
    # In as few partitions on any machine, and in order, as repartition does not leave them.
    return spark.createDataFrame(rows, schema).coalesce(2)


def _vectors(spark: SparkSession, table: pa.Table, names: list[str]) -> DataFrame:
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.types import DoubleType, StructField, StructType

    attributes = [{"idx": number, "name": name} for number, name in enumerate(names)]
    metadata = {"ml_attr": {"attrs": {"binary": attributes}, "num_attrs": len(names)}}
    schema = StructType([StructField("label", DoubleType()), StructField("features", VectorUDT())])
    frame = _frame(spark, table).mapInArrow(_as_they_are, schema)
    return frame.withMetadata("features", metadata)


def _as_they_are(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return structs that Spark then takes for vectors; runs on executors."""
    return batches
