"""Score vectors in columns of a DataFrame; driver, and one task class for the executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StructField, StructType

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.formats.vectors import read_vectors
from spark_fm.learner.csr import CsrBatch, canonical
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.spec import LossName
from spark_fm.learner.weights import FMWeights, Posterior
from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.gpu import GpuAssignment, row_scorer
from spark_fm.spark.schema import column_of, is_vector, quoted, quoted_name
from spark_fm.spark.udf import arrow_function, has_arrow_udf, pandas_function
from spark_fm.spark.worker import WorkerTask

VECTOR_FIELDS = ("type", "size", "indices", "values")
RESULT = StructType([StructField("score", DoubleType()), StructField("margin", DoubleType())])
MEAN_AND_STD = StructType([StructField("mean", DoubleType()), StructField("std", DoubleType())])


@dataclass(frozen=True)
class ScoreTask(WorkerTask):
    """Score arrays of vectors; unless bad rows are errors, their score is null."""

    model: Broadcast  # FMWeights
    loss: LossName
    features_col: str  # the caller's name, for messages
    handle_invalid: HandleInvalid
    gpu: GpuAssignment | None = None  # scores large batches

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield a struct of score and margin for each array of vectors."""
        weights: FMWeights = self.model.load()
        reader = FeatureReader(self.features_col, self.handle_invalid)
        margins = row_scorer(self.gpu, weights.table, 0.0, weights.features)
        for column in columns:
            rows, bad = reader.read(column, weights.feature_dim)
            margin = np.full(len(bad), np.nan)
            margin[~bad] = weights.bias + margins(rows).astype(np.float64)
            score = LOSSES[self.loss].link(margin)
            overflows = ~bad & ~np.isfinite(score)
            if overflows.any():
                reader.refuse("values so large that the score overflows", "")
                bad = bad | overflows
            parts = [pa.array(part, pa.float64(), mask=bad) for part in (score, margin)]
            yield pa.StructArray.from_arrays(parts, names=["score", "margin"])


@dataclass(frozen=True)
class PosteriorTask(WorkerTask):
    """Predict arrays of vectors by all members of a posterior."""

    posterior: Broadcast  # Posterior
    loss: LossName
    reader: FeatureReader

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield a struct of mean and standard deviation for each array of vectors."""
        posterior: Posterior = self.posterior.load()
        for column in columns:
            rows, bad = self.reader.read(column, posterior.members[0].feature_dim)
            values = posterior.predict(rows, self.loss)
            yield pa.StructArray.from_arrays(
                [with_bad_rows(each, bad) for each in values],
                fields=[pa.field(name, pa.float64()) for name in MEAN_AND_STD.names],
                mask=pa.array(bad),
            )


class StructTask(Protocol):
    """Makes a struct of each vector; picklable."""

    @property
    def features_col(self) -> str:
        """Return the name of the column that it reads."""

    def __call__(self, columns: Iterator[pa.Array], /) -> Iterator[pa.StructArray]:
        """Yield an array of structs for each array of vectors."""


def with_structs(
    dataset: DataFrame, task: StructTask, returns: StructType
) -> tuple[DataFrame, str]:
    """Return the dataset with the structs that a task makes of ``task.features_col``.

    Returns
    -------
    DataFrame
    str
        Name of the last column, the structs.

    Notes
    -----
    Spark moves a filter below a function, and copies the function into it when the filter is on
    its result: the task would run twice. It would not below a non-deterministic function, but
    there it moves no filter at all, and every partition is read. The unpivoting of one column,
    an Expand in the plan, is between: filters on columns that are below it pass, and its own
    column is not taken for the function that made it. Where that column is not used, the task
    does not run.
    """
    made, variable, structs = (f"spark_fm_{uuid4().hex}" for _ in range(3))
    rows = force_row_input(dataset, task.features_col)
    rows = rows.select("*", _struct_column(task, dataset, returns).alias(made))
    return rows.unpivot("*", made, variable, structs).drop(made, variable), structs


def _struct_column(task: StructTask, dataset: DataFrame, returns: StructType) -> Column:
    features = quoted(task.features_col)
    if has_arrow_udf():
        return cast(Column, arrow_function("score", task, returns)(features))
    # A vector comes as its four fields, an array as itself: pandas would make a dict of
    # every struct.
    parts = [features]
    if is_vector(column_of(dataset, task.features_col, "featuresCol").dataType):
        plain = F.unwrap_udt(features)
        parts = [plain[name] for name in VECTOR_FIELDS]
    to_arrow: Any = _vector_structs if len(parts) > 1 else _lists

    def score(batches: Iterator[Any]) -> Iterator[pd.DataFrame]:
        for result in task(map(to_arrow, batches)):
            yield pa.Table.from_batches([pa.RecordBatch.from_struct_array(result)]).to_pandas()

    return cast(Column, pandas_function("score", score, returns, len(parts))(*parts))


@dataclass(frozen=True)
class FunctionTask:
    """Score arrays of vectors into one array each, as a SQL function returns it."""

    task: ScoreTask
    threshold: float | None  # from this score on return 1.0, else 0.0; None returns the score

    def __call__(self, columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Yield doubles, null where the row has no score."""
        for scored in self.task(map(self._checked, columns)):
            score = scored.field("score")
            if self.threshold is not None:
                score = pc.cast(pc.greater_equal(score, self.threshold), pa.float64())
            yield score

    def _checked(self, column: pa.Array) -> pa.Array:
        """Return the one argument; SQL lets a caller pass anything."""
        kind = getattr(column, "type", None)
        if kind is not None and _is_vector_or_array(kind):
            return column
        seen = f"{len(column)} arguments" if kind is None else f"a column of type {kind}"
        raise InvalidColumnError(
            f"{self.task.features_col} got {seen}; expected one column of vectors, array<double> "
            "or array<float>."
        )


def _is_vector_or_array(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_floating(kind.value_type))
    return bool(pa.types.is_struct(kind)) and set(VECTOR_FIELDS) <= {f.name for f in kind}


def sql_function(task: FunctionTask) -> Any:
    """Return a Python function of a vector or array column for ``spark.udf.register``.

    It is deterministic: only then may SQL use it under an aggregate, in a join or for a sort.
    """
    if has_arrow_udf():
        return arrow_function("score", task, DoubleType())

    def score(batches: Iterator[Any]) -> Iterator[pd.Series[Any]]:
        # A vector comes as a frame of its fields, an array as a series.
        columns = (
            _lists(batch)
            if isinstance(batch, pd.Series)
            else _vector_structs(tuple(batch[name] for name in VECTOR_FIELDS))
            for batch in batches
        )
        for result in task(columns):
            yield result.to_pandas()

    return pandas_function("score", score, DoubleType())


def force_row_input(dataset: DataFrame, features_col: str) -> DataFrame:
    """Return the same rows behind an operator that makes Spark hand out rows.

    From 4.2 on a Python function right over a columnar source, such as a Parquet scan, has
    Spark copy every column of it into columnar batches, and that fails for VectorUDT
    (UNSUPPORTED_DATATYPE). The filter, for at least 0 values that are not null, keeps every
    row; the optimizer does not know that, and moves other filters past it.
    """
    return dataset.dropna(thresh=0, subset=[quoted_name(features_col)])


def _lists(values: pd.Series[Any]) -> pa.Array:
    return pa.array(values, pa.list_(pa.float64()))


def _vector_structs(fields: tuple[pd.Series[Any], ...]) -> pa.StructArray:
    """Return vector structs from their fields: type, size, indices, values."""
    kinds = (pa.int8(), pa.int32(), pa.list_(pa.int32()), pa.list_(pa.float64()))
    is_null = fields[0].isna().to_numpy()
    arrays = [
        pa.array(field.astype("Int32") if kind in kinds[:2] else field, kind)
        for field, kind in zip(fields, kinds, strict=True)
    ]
    return pa.StructArray.from_arrays(arrays, names=VECTOR_FIELDS, mask=pa.array(is_null))


def make_task(
    model: Broadcast,
    *,
    loss: LossName,
    features_col: str,
    handle_invalid: HandleInvalid,
    gpu: GpuAssignment | None = None,
) -> ScoreTask:
    """Return a task of this version."""
    return ScoreTask(model, loss, features_col, handle_invalid, gpu)


HandleInvalid = Literal["error", "skip", "keep"]


@dataclass(frozen=True)
class FeatureReader:
    """Read vectors and sort out those that a model cannot score; they are errors, or flagged."""

    features_col: str  # the caller's name, for messages
    handle_invalid: HandleInvalid

    def read(self, column: pa.Array, feature_dim: int) -> tuple[CsrBatch, NDArray[np.bool_]]:
        """Return the canonical good rows, and for each row of the column whether it is bad.

        Raises
        ------
        InvalidDataError
            For a bad row under "error": null, broken, dense but not as long as the model,
            with an index outside its range or a value that is not a finite float32.
        """
        vectors = read_vectors(column)
        with np.errstate(over="ignore"):
            values = vectors.values.astype(np.float32)
        bad = vectors.is_null | vectors.is_broken
        if bad.any():
            self.refuse("a null or broken vector", "")
        other = vectors.is_dense & (vectors.sizes != feature_dim)
        if other.any():
            seen = vectors.sizes[other][0]
            self.refuse(f"a dense vector or array of {seen} values, not {feature_dim}", "")
            bad = bad | other
        outside = (vectors.indices < 0) | (vectors.indices >= feature_dim)
        finite = np.isfinite(vectors.values)
        for flags, what, source in (
            (outside, f"an index outside 0 to {feature_dim - 1}", vectors.indices),
            (~finite, "a NaN or infinite value", vectors.values),
            (finite & ~np.isfinite(values), "a value beyond float32", vectors.values),
        ):
            if flags.any():
                first = int(np.flatnonzero(flags)[0])
                self.refuse(what, f" ({source[first]})")
                total = np.concatenate([[0], np.cumsum(flags)])
                bad = bad | (total[vectors.indptr[1:]] > total[vectors.indptr[:-1]])
        rows = CsrBatch.from_arrays(vectors.indptr, vectors.indices, values)
        if bad.any():
            rows = rows.take(np.flatnonzero(~bad))
        return canonical(rows), bad

    def refuse(self, what: str, example: str) -> None:
        """Raise InvalidDataError, but where bad rows are to be flagged."""
        if self.handle_invalid == "error":
            raise InvalidDataError(
                f"featuresCol={self.features_col!r} holds {what}{example}, which the model cannot "
                "score. Clean the data, or set handleInvalid='keep' for a null score or 'skip' to "
                "drop such rows."
            )


def with_bad_rows(values: NDArray[Any], bad: NDArray[np.bool_]) -> pa.Array:
    """Return the values of good rows with a 0 for each bad one, for structs that mask them."""
    column = np.zeros(len(bad))
    column[~bad] = values
    return pa.array(column)


def lists_with_bad_rows(
    lengths: NDArray[np.integer] | int, items: pa.Array, bad: NDArray[np.bool_]
) -> pa.ListArray:
    """Return the lists of good rows, of these lengths, with an empty one for each bad row."""
    offsets = np.zeros(len(bad) + 1, np.int32)
    offsets[1:][~bad] = lengths
    return pa.ListArray.from_arrays(pa.array(np.cumsum(offsets, dtype=np.int32)), items)
