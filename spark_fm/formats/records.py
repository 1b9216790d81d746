"""Rows of any format as recordIO-protobuf."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spark_fm.formats.batches import Rows
from spark_fm.formats.encoding import encode_rows
from spark_fm.formats.matrices import as_float32, raise_value


def encode_records(rows: Rows, *, first_row: int = 0) -> bytes:
    """Return rows as framed records, dense ones dense, without a label where they have none.

    Parameters
    ----------
    rows : Rows
        Widths must be known.
    first_row : int
        What errors call the first row.

    Raises
    ------
    InvalidDataError
        For a number that is not finite as float32.
    """
    values, wrong = as_float32(rows.values)
    if wrong is not None:
        row = int(np.searchsorted(rows.indptr, wrong, "right")) - 1
        raise_value(rows.values[wrong], f"Row {first_row + row}, feature {rows.indices[wrong]}")
    has_label = ~np.isnan(rows.labels)
    labels, wrong = as_float32(np.where(has_label, rows.labels, 0))
    if wrong is not None:
        raise_value(rows.labels[wrong], f"Label of row {first_row + wrong}")
    # Some rows may have a label and others none: a call for each run of rows that are alike.
    cuts = np.flatnonzero(np.diff(has_label)) + 1
    return b"".join(
        _encode_run(
            rows, start, stop, values, labels[start:stop] if has_label[start] else None, first_row
        )
        for start, stop in pairwise([0, *cuts.tolist(), rows.n_rows])
        if start < stop
    )


def _encode_run(
    rows: Rows, start: int, stop: int, values: NDArray[np.float32],
    labels: NDArray[np.float32] | None, first_row: int,
) -> bytes:  # fmt: skip
    indptr = rows.indptr[start : stop + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    is_dense = rows.is_dense[start:stop]
    in_sparse = np.repeat(~is_dense, np.diff(indptr))
    return encode_rows(
        indptr - indptr[0], rows.indices[entries][in_sparse], values[entries],
        rows.widths[start:stop], is_dense, labels, first_row=first_row + start,
    )  # fmt: skip
