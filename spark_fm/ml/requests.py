"""Requests and responses of scoring services as columns; driver only."""

from __future__ import annotations

from typing import Literal

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from spark_fm.formats.body_kinds import JSONLINES
from spark_fm.formats.content_types import content_type_of
from spark_fm.learner.csr import MAX_FEATURE_ID
from spark_fm.learner.spec import require
from spark_fm.scoring.requests import VectorsTask, responses_of, vectors_of
from spark_fm.spark.session import use_driver_interpreter

HandleInvalid = Literal["error", "keep"]


def instance_vector(
    column: Column | str,
    *,
    feature_dim: int,
    content_type: str = JSONLINES,
    handle_invalid: HandleInvalid = "error",
) -> Column:
    """Return the vector of the single instance in each cell of a column.

    Parameters
    ----------
    column : Column or str
        Strings or binary: a JSON instance, such as a line of a file or the value of a
        message, or a framed Record.
    feature_dim : int
        Size of the vectors: the model's ``numFeatures``.
    content_type : str
        One of "application/jsonlines", "application/json" (a document with one instance)
        and "application/x-recordio-protobuf".
    handle_invalid : {"error", "keep"}
        Whether a cell that cannot be read is an error or gives a null vector.

    Returns
    -------
    Column
        Sparse vectors, null for null.

    Raises
    ------
    InvalidParamError
        For another content type, or a ``feature_dim`` out of range.

    Notes
    -----
    Cells are valid or invalid by the rules of ``spark_fm.formats.requests.decode_request``.
    Works on Classic and Connect, in batch and streaming queries.

    Examples
    --------
    >>> from spark_fm import instance_vector, response_body
    >>> lines = spark.read.text("requests.jsonl")  # doctest: +SKIP
    >>> vectors = instance_vector("value", feature_dim=model.numFeatures)  # doctest: +SKIP
    >>> scored = model.transform(lines.withColumn("features", vectors))  # doctest: +SKIP
    >>> scored.select(response_body()).write.text("scores")  # doctest: +SKIP
    """
    return _vectors(column, feature_dim, content_type, handle_invalid, one_each=True)


def request_vectors(
    column: Column | str,
    *,
    feature_dim: int,
    content_type: str,
    handle_invalid: HandleInvalid = "error",
) -> Column:
    """Return the vectors of all instances of the request in each cell.

    Parameters
    ----------
    column : Column or str
        Strings or binary: bodies of requests.
    feature_dim, content_type, handle_invalid
        As in `instance_vector`.

    Returns
    -------
    Column
        Arrays of sparse vectors, for ``explode`` or ``posexplode``; null for null.

    Raises
    ------
    InvalidParamError
        As in `instance_vector`.
    """
    return _vectors(column, feature_dim, content_type, handle_invalid, one_each=False)


def _vectors(
    column: Column | str, feature_dim: int, content_type: str, handle_invalid: HandleInvalid,
    *, one_each: bool,
) -> Column:  # fmt: skip
    require(
        isinstance(feature_dim, int) and 1 <= feature_dim <= MAX_FEATURE_ID + 1,
        "feature_dim", feature_dim, f"a whole number from 1 to {MAX_FEATURE_ID + 1}",
    )  # fmt: skip
    require(
        handle_invalid in ("error", "keep"), "handle_invalid", handle_invalid, '"error" or "keep"'
    )
    kind = content_type_of(content_type).name
    task = VectorsTask(kind, int(feature_dim), one_each, handle_invalid)
    _use_driver_interpreter()
    return vectors_of(task, _column(column))


def response_body(
    score: Column | str = "score",
    predicted_label: Column | str | None = "predicted_label",
    *,
    accept: str = JSONLINES,
) -> Column:
    """Return scores as response bodies, one per row.

    Parameters
    ----------
    score : Column or str
    predicted_label : Column or str, optional
        None omits labels, as in a regressor's responses.
    accept : str
        "application/jsonlines" (an object without the end of its line), "application/json"
        (a document with one prediction) or "application/x-recordio-protobuf" (a framed
        Record, which can be joined to others).

    Returns
    -------
    Column
        Strings, or binary for records; null where score or label is null. A score that is
        not finite is an error (on PySpark 4.0 NaN gives null).

    Raises
    ------
    InvalidParamError
        For another type.
    """
    kind = content_type_of(accept, "accept").name
    _use_driver_interpreter()
    label = None if predicted_label is None else _column(predicted_label)
    return responses_of(kind, _column(score), label)


def _column(column: Column | str) -> Column:
    return F.col(column) if isinstance(column, str) else column


def _use_driver_interpreter() -> None:
    session = SparkSession.getActiveSession()
    if session is not None:
        use_driver_interpreter(session)
