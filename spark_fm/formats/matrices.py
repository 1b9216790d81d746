"""Matrices and arrays as a caller gives them: of what kind, and of which numbers."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError


def rows_of(X: Any) -> Any:
    """Return a CSR array or a 2-D array of real numbers, whose values are still unchecked."""
    rows: Any = X if sp.issparse(X) else array_of(X, "X")
    check_dtype(rows.dtype, "X")
    if rows.ndim == 1:
        rows = rows.reshape(min(1, rows.shape[0]), rows.shape[0])  # an empty list has no rows
    if rows.ndim != 2:
        raise InvalidDataError(
            f"X has {rows.ndim} dimensions (shape {rows.shape}): it must have rows and columns, "
            f"or be one row. Reshape it with X.reshape(n_rows, -1)."
        )
    if rows.shape[0] and not rows.shape[1]:
        raise InvalidDataError(
            f"X has {rows.shape[0]} rows but no columns: it needs one column at least."
        )
    if not sp.issparse(rows):
        return rows
    if rows.dtype == np.float16:  # old SciPy holds it but cannot convert formats in it
        rows = rows.astype(np.float32)
    return rows.tocsr()


def array_of(data: Any, name: str) -> NDArray[Any]:
    """Return data as an array, or raise for rows of different lengths."""
    if np.ma.isMaskedArray(data) and np.ma.is_masked(data):
        raise InvalidDataError(
            f"{name} has masked entries: there are no missing values. Fill them in with "
            f"{name}.filled(0) or leave the rows out."
        )
    if type(data).__module__.startswith("pyspark.sql"):
        raise InvalidDataError(
            f"{name} is a {type(data).__name__} of Spark; expected a matrix. For a DataFrame use "
            "model.transform."
        )
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as err:
        raise InvalidDataError(
            f"{name} of type {type(data).__name__} is not a table of numbers ({err}). Pass rows "
            f"of the same length."
        ) from err
    # Tables without rows often have no type to speak of.
    return array if array.size else np.empty(array.shape, np.float32)


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raise unless the type is one of real numbers."""
    if dtype.kind not in "biuf":
        raise InvalidDataError(
            f"{name} has dtype {dtype}: float, integer and bool are allowed. Convert it with "
            f"{name}.astype('float32') if all of it is numbers; encode text and dates as "
            f"numbers first."
        )


def as_float32(array: NDArray[Any]) -> tuple[NDArray[np.float32], int | None]:
    """Return numbers as float32, and the place of the first that is not finite in it."""
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32, copy=False)
    finite = np.isfinite(numbers)
    return numbers, None if finite.all() else int(finite.argmin())


def raise_value(value: Any, what: str) -> NoReturn:
    """Raise for a number that float32 cannot hold."""
    if np.isfinite(value):
        raise InvalidDataError(
            f"{what} is {value!s}, too large for float32: the largest is "
            f"{np.finfo(np.float32).max!s}. Scale it down first."
        )
    raise InvalidDataError(
        f"{what} is {value!s}: only finite numbers are allowed. Fill missing numbers in, or "
        f"leave the row out."
    )
