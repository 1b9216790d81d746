"""Spark vectors in Arrow columns, SciPy matrices and arrays, as CSR arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """Vectors of one record batch, before any check of their content."""

    indptr: NDArray[np.int64]  # (n_rows + 1,)
    indices: NDArray[np.int32]  # (nnz,)
    values: NDArray[np.float64]  # (nnz,)
    sizes: NDArray[np.int64]  # (n_rows,): declared lengths; 0 for a null vector
    is_null: NDArray[np.bool_]
    is_dense: NDArray[np.bool_]
    is_broken: NDArray[np.bool_]  # unequally many indices and values, and no entries here


VECTOR_TYPE = pa.struct(
    [
        pa.field("type", pa.int8(), nullable=False),
        pa.field("size", pa.int32()),
        pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
    ]
)


def read_vectors(column: pa.Array, *, keep_zeros: bool = False) -> VectorColumn:
    """Read a VectorUDT struct or a list of floats; O(nnz), no copy for all-sparse rows.

    Zeros, stored or dense, are dropped unless ``keep_zeros``, so that every form of a
    vector trains alike.
    """
    read = _read_structs if pa.types.is_struct(column.type) else _read_lists
    vectors = read(column)
    return vectors if keep_zeros else _without_zeros(vectors)


def row_lengths(column: pa.Array) -> NDArray[np.int64]:
    """Return how many values each vector of a column has, zeros included; 0 for a null."""
    lists = column.field("values") if pa.types.is_struct(column.type) else column
    return np.asarray(lists.value_lengths().fill_null(0)).astype(np.int64)


def vector_column(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float64],
    sizes: NDArray[np.int64],
    *,
    is_dense: NDArray[np.bool_],
    is_null: NDArray[np.bool_],
) -> pa.StructArray:
    """Return a VectorUDT column; the opposite of ``read_vectors``, O(nnz).

    Dense rows have an entry for each feature; null rows have none.
    """
    lengths = np.diff(indptr)
    index_lengths = np.where(is_dense, 0, lengths)
    sparse_indices = indices[np.repeat(~is_dense, lengths)] if is_dense.any() else indices
    index_starts = np.zeros(len(indptr), np.int32)
    np.cumsum(index_lengths, out=index_starts[1:])
    hidden = pa.array(is_dense | is_null)
    list_types = [VECTOR_TYPE.field(name).type for name in ("indices", "values")]
    return pa.StructArray.from_arrays(
        [
            pa.array(is_dense.astype(np.int8)),
            pa.array(sizes.astype(np.int32), mask=is_dense | is_null),
            pa.ListArray.from_arrays(
                pa.array(index_starts), pa.array(sparse_indices), type=list_types[0], mask=hidden
            ),
            pa.ListArray.from_arrays(
                pa.array(indptr.astype(np.int32)), pa.array(values), type=list_types[1],
                mask=pa.array(is_null),
            ),
        ],
        fields=list(VECTOR_TYPE),
        mask=pa.array(is_null),
    )  # fmt: skip


def _lists(column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Return row starts and the flat child, null rows emptied."""
    if column.null_count:
        # A null list may still span child values; flatten() drops them.
        lengths = np.asarray(column.value_lengths().fill_null(0)).astype(np.int64)
        child = column.flatten()
        return np.concatenate([[0], np.cumsum(lengths)]), child
    offsets = np.asarray(column.offsets).astype(np.int64)
    child = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    return offsets - offsets[0], child


def _read_lists(column: pa.Array) -> VectorColumn:
    is_null = np.asarray(column.is_null())
    indptr, child = _lists(column)
    values = child.to_numpy(zero_copy_only=False).astype(np.float64)  # null elements: NaN
    lengths = np.diff(indptr)
    indices = (np.arange(len(values)) - np.repeat(indptr[:-1], lengths)).astype(np.int32)
    broken = np.zeros(len(column), bool)
    dense = ~is_null
    return VectorColumn(indptr, indices, values, lengths, is_null, dense, broken)


def _read_structs(column: pa.StructArray) -> VectorColumn:
    is_null = np.asarray(column.is_null())
    kinds = np.asarray(column.field("type").fill_null(0))
    kinds = np.where(is_null, 0, kinds)
    sizes = np.asarray(column.field("size").fill_null(0)).astype(np.int64)
    indptr, value_child = _lists(column.field("values"))
    index_starts, index_child = _lists(column.field("indices"))
    values = np.asarray(value_child)
    indices = np.asarray(index_child)
    lengths = np.diff(indptr)
    is_dense = kinds == 1
    if not is_dense.any() and np.array_equal(indptr, index_starts):
        broken = np.zeros(len(column), bool)
        return VectorColumn(indptr, indices, values, sizes, is_null, is_dense, broken)
    index_lengths = np.diff(index_starts)
    broken = ~is_dense & (lengths != index_lengths)
    kept = np.where(broken | is_null, 0, lengths)
    starts = np.concatenate([[0], np.cumsum(kept)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], kept)
    from_list = np.repeat(index_starts[:-1], kept) + within
    dense_entry = np.repeat(is_dense, kept)
    merged = within.astype(np.int32)
    merged[~dense_entry] = indices[from_list[~dense_entry]]
    taken = values[np.repeat(indptr[:-1], kept) + within]
    sizes = np.where(is_dense, lengths, sizes)
    return VectorColumn(starts, merged, taken, sizes, is_null, is_dense, broken)


def _without_zeros(column: VectorColumn) -> VectorColumn:
    keep = column.values != 0
    if keep.all():
        return column
    starts = np.concatenate([[0], np.cumsum(keep)])[column.indptr]
    return VectorColumn(
        starts, column.indices[keep], column.values[keep], column.sizes, column.is_null,
        column.is_dense, column.is_broken,
    )  # fmt: skip


def rows_of(X: Any) -> Any:
    """Return a CSR array or a 2-D array of real numbers, whose values are still unchecked."""
    import scipy.sparse as sp

    rows: Any = X if sp.issparse(X) else array_of(X, "X")
    if isinstance(rows, np.ndarray) and rows.dtype == object:
        rows = _rows_of_vectors(rows)
    check_dtype(rows.dtype, "X")
    if rows.dtype == np.float16:  # SciPy does not compute with it
        rows = rows.astype(np.float32)
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
    return rows.tocsr() if sp.issparse(rows) else rows


def _rows_of_vectors(rows: NDArray[Any]) -> Any:
    """Return the CSR array of a column of Spark's vectors, such as toPandas() gives.

    Objects of another kind are returned as they are. Spark's classes are recognised by their
    methods: nothing here may need Spark.
    """
    if rows.ndim == 2 and rows.shape[1] == 1:
        rows = rows[:, 0]
    is_vector = [hasattr(each, "toArray") and hasattr(each, "size") for each in rows.flat]
    if not any(is_vector):
        return rows
    if rows.ndim != 1:
        raise InvalidDataError(
            f"X has {rows.shape[1]} columns, and vectors in one of them: pass that column alone, "
            "such as frame['features']."
        )
    if not all(is_vector):
        at = is_vector.index(False)
        raise InvalidDataError(
            f"Row {at} of X is {rows[at]!r}, others are vectors. Leave such rows out."
        )
    import scipy.sparse as sp

    sizes = {int(vector.size) for vector in rows}
    if len(sizes) > 1:
        raise InvalidDataError(
            f"X has vectors of {min(sizes)} to {max(sizes)} features; expected the same length."
        )
    indices = [getattr(vector, "indices", np.arange(vector.size)) for vector in rows]
    indptr = np.cumsum([0, *map(len, indices)])
    values = np.concatenate([vector.values for vector in rows])
    return sp.csr_array((values, np.concatenate(indices), indptr), (len(rows), *sizes))


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
    """Return numbers as float32, and the index of the first that is not finite in it."""
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
