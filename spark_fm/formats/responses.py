"""Scores as responses: JSON, JSON lines and recordIO-protobuf, and back; no Spark.

The formats are those of SageMaker's factorization machines: a score and, of a classifier,
a predicted label for each instance, in the order of the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spark_fm.formats.content_types import Predictions, content_type_of

__all__ = ["Predictions", "decode_response", "encode_response", "write_responses"]


def encode_response(
    scores: NDArray[np.float32], labels: NDArray[np.float32] | None, accept: str
) -> bytes:
    """Return scores as the body of a response.

    Parameters
    ----------
    scores : ndarray of shape (n_rows,), float32
    labels : ndarray of shape (n_rows,), float32, or None
        0 or 1 for each row; None leaves them out, as of a regressor.
    accept : str
        One of CONTENT_TYPES.

    Returns
    -------
    bytes

    Raises
    ------
    RequestError
        For a score that is not finite: the values of that instance are too large.
    InvalidParamError
        For another content type.

    Notes
    -----
    O(n_rows). Scores are written with the digits of a double, so that they are read back
    as the same float32, and labels as 0.0 or 1.0.

    Examples
    --------
    >>> import numpy as np
    >>> from spark_fm.formats.responses import encode_response
    >>> scores, labels = np.array([0.25, 0.75], np.float32), np.array([0, 1], np.float32)
    >>> encode_response(scores, labels, "application/jsonlines").decode().splitlines()[1]
    '{"score": 0.75, "predicted_label": 1.0}'
    """
    kind = content_type_of(accept, "accept")
    return kind.before + kind.predictions(scores, labels) + kind.after


def write_responses(chunks: Iterable[Predictions], stream: BinaryIO, accept: str) -> int:
    """Write the scores of many rows as one response, chunk after chunk.

    Parameters
    ----------
    chunks : iterable of Predictions
    stream : binary file
        Only ``write`` is called.
    accept : str

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    RequestError
        As in `encode_response`; chunks before it have been written.
    InvalidParamError

    Notes
    -----
    The bytes are those of `encode_response` for all rows at once.
    """
    kind = content_type_of(accept, "accept")
    n_rows = 0
    stream.write(kind.before)
    for chunk in chunks:
        if not len(chunk.scores):
            continue
        rows = kind.predictions(chunk.scores, chunk.labels, n_rows)
        stream.write(kind.between + rows if n_rows else rows)
        n_rows += len(chunk.scores)
    stream.write(kind.after)
    return n_rows


def decode_response(body: bytes, content_type: str) -> Predictions:
    """Return the scores in a response.

    Parameters
    ----------
    body : bytes
    content_type : str
        One of CONTENT_TYPES.

    Returns
    -------
    Predictions
        Labels are None when no row has one.

    Raises
    ------
    InvalidDataError
        For a body that is no such response, or when only some of the rows have a label.
    InvalidParamError
        For another content type.

    Notes
    -----
    Other members that a server adds to a prediction are ignored.

    Examples
    --------
    >>> from spark_fm.formats.responses import decode_response
    >>> decode_response(b'{"predictions": [{"score": 0.5}]}', "application/json").scores
    array([0.5], dtype=float32)
    """
    return content_type_of(content_type).decode_response(body)
