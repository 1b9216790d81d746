"""MXNet's container of named arrays, read and written without MXNet.

All versions that MXNet 0.x to 2.x wrote are read: dense, row_sparse and csr arrays, of
every element type. Files are untrusted: every count, shape and length is checked against
the bytes that are there before anything is made from it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError, ModelFormatError

MAGIC = 0x112
FIRST_BYTES = MAGIC.to_bytes(8, "little")  # of a container
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE, ROW_SPARSE, CSR = 0, 1, 2
MAX_DIMS = 32
CHUNK_BYTES = 16 * 2**20
BFLOAT16 = 12
DTYPES = {
    0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8", 7: "|b1", 8: "<i2",
    9: "<u2", 10: "<u4", 11: "<u8", BFLOAT16: "<u2",
}  # fmt: skip
CODES = {np.dtype(name): code for code, name in DTYPES.items() if code != BFLOAT16}


@dataclass(frozen=True, slots=True, eq=False)
class RowSparse:
    """Some rows of an array whose other rows are zero."""

    data: NDArray[Any]  # (n, ...)
    indices: NDArray[np.int64]  # (n,): the numbers of these rows, strictly increasing
    shape: tuple[int, ...]  # of the whole array


@dataclass(frozen=True, slots=True, eq=False)
class CsrArray:
    """A matrix in compressed sparse rows."""

    data: NDArray[Any]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    shape: tuple[int, ...]


Stored = NDArray[Any] | RowSparse | CsrArray


def read_ndarrays(data: bytes | memoryview, *, source: str) -> list[tuple[str, Stored | None]]:
    """Return the arrays of a container with their names, in file order.

    Names are ``""`` in a container without names; an array that MXNet saved before its shape
    was known is None. Dense arrays are read-only views of ``data``; bfloat16 becomes float32,
    which holds all its values. Raises ModelFormatError with the byte of the fault.

    Layout: src/ndarray/ndarray.cc of Apache MXNet 1.3.1 and 1.9.1. O(number of arrays),
    plus a check of the indices of sparse ones.
    """
    cursor = _Cursor(memoryview(data), source)
    if cursor.number("<Q", "the magic of a list of arrays") != MAGIC:
        raise cursor.error(0, f"it does not begin with the number {MAGIC:#x}")
    cursor.number("<Q", "the reserved number")
    at = cursor.at
    count = cursor.number("<Q", "the number of arrays")
    if count * 4 > cursor.left:
        raise cursor.error(at, f"it claims {count:,} arrays in {cursor.left:,} bytes")
    arrays = [_read_array(cursor) for _ in range(count)]
    names = _read_names(cursor, count)
    if cursor.left:
        raise cursor.error(cursor.at, f"{cursor.left:,} bytes follow the names")
    return list(zip(names, arrays, strict=True))


def to_dense(array: Stored, *, max_bytes: int, what: str) -> NDArray[Any]:
    """Return a stored array with all its zeros.

    Raises ModelFormatError for more than ``max_bytes``: a small file may claim any shape.
    """
    if isinstance(array, np.ndarray):
        return array
    n_bytes = prod(array.shape) * array.data.dtype.itemsize
    if n_bytes > max_bytes:
        raise ModelFormatError(
            f"{what} has shape {array.shape}, {n_bytes:,} bytes once its zeros are filled in; at "
            f"most {max_bytes:,} are allowed. Raise the limit if the file can be trusted."
        )
    whole = np.zeros(array.shape, array.data.dtype)
    if isinstance(array, RowSparse):
        whole[array.indices] = array.data
    else:
        rows = np.repeat(np.arange(array.shape[0]), np.diff(array.indptr))
        whole[rows, array.indices] = array.data
    return whole


def write_ndarrays(file: BinaryIO, arrays: Sequence[tuple[str, NDArray[Any] | RowSparse]]) -> None:
    """Write a container of version V2, as MXNet 0.12 to 1.x saves it.

    No array has zero dimensions, which V2 cannot distinguish from an empty one. Raises
    InvalidParamError for an element type or a shape that the format does not have.
    """
    file.write(struct.pack("<QQQ", MAGIC, 0, len(arrays)))
    for name, array in arrays:
        _write_array(file, name, array)
    file.write(struct.pack("<Q", len(arrays)))
    for name, _ in arrays:
        raw = name.encode()
        file.write(struct.pack("<Q", len(raw)) + raw)


class _Cursor:
    """A position in the bytes that never goes past their end."""

    def __init__(self, data: memoryview, source: str) -> None:
        self.data, self.source, self.at = data, source, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def error(self, at: int, what: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.source} is no readable file of MXNet arrays: at byte {at:,}, {what}."
        )

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise self.error(
                self.at, f"{what} needs {size:,} bytes, but only {self.left:,} are left"
            )
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])


def _read_names(cursor: _Cursor, count: int) -> list[str]:
    at = cursor.at
    n_names = cursor.number("<Q", "the number of names")
    if n_names not in (0, count):
        raise cursor.error(at, f"there are {n_names:,} names for {count:,} arrays")
    names: dict[str, None] = {}  # in order
    for i in range(n_names):
        length = cursor.number("<Q", f"the length of name {i}")
        at = cursor.at
        raw = bytes(cursor.take(length, f"name {i}"))
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise cursor.error(at, f"name {i} is not UTF-8") from None
        if name in names:
            raise cursor.error(at, f"two arrays are called {name!r}")
        names[name] = None
    return list(names) or [""] * count


def _read_array(cursor: _Cursor) -> Stored | None:
    at = cursor.at
    magic = cursor.number("<I", "an array")
    if magic not in (V1, V2, V3):
        shape = _dims(cursor, magic, "<u4", at)  # the oldest form begins with its dimensions
        return _read_dense(cursor, shape) if shape else None
    if magic == V1:
        shape = _shape(cursor)
        return _read_dense(cursor, shape) if shape else None
    at = cursor.at
    storage = cursor.number("<i", "the storage type")
    if storage not in (DENSE, ROW_SPARSE, CSR) or (magic == V3 and storage != DENSE):
        raise cursor.error(at, f"storage type {storage} is not one of this version")
    if storage != DENSE:
        return _read_sparse(cursor, storage)
    n_dims = cursor.number("<i", "the number of dimensions")
    if n_dims == -1 or (n_dims == 0 and magic == V2):
        return None
    return _read_dense(cursor, _dims(cursor, n_dims, "<i8", cursor.at - 4))


def _shape(cursor: _Cursor) -> tuple[int, ...]:
    at = cursor.at
    return _dims(cursor, cursor.number("<i", "the number of dimensions"), "<i8", at)


def _dims(cursor: _Cursor, n_dims: int, form: str, at: int) -> tuple[int, ...]:
    if not 0 <= n_dims <= MAX_DIMS:
        raise cursor.error(at, f"an array has {n_dims:,} dimensions; 0 to {MAX_DIMS} are allowed")
    raw = cursor.take(n_dims * np.dtype(form).itemsize, "a shape")
    shape = tuple(np.frombuffer(raw, form).tolist())
    if any(size < 0 for size in shape):
        raise cursor.error(at, f"an array has the shape {shape}")
    return shape


def _dtype(cursor: _Cursor) -> int:
    at = cursor.at
    code = cursor.number("<i", "the element type")
    if code not in DTYPES:
        raise cursor.error(at, f"element type {code} is unknown")
    return code


def _elements(cursor: _Cursor, shape: tuple[int, ...], code: int, what: str) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[code])
    # NumPy limits the bytes of an array with its zeros left out of the product.
    if prod(size for size in shape if size) * dtype.itemsize > 2**62:
        raise cursor.error(cursor.at, f"{what} has the impossible shape {shape}")
    raw = cursor.take(prod(shape) * dtype.itemsize, f"{what} of shape {shape} and type {dtype}")
    if code == CODES[np.dtype(np.bool_)]:
        truth: NDArray[Any] = np.frombuffer(raw, np.uint8).reshape(shape) != 0
        return truth
    found = np.frombuffer(raw, dtype).reshape(shape)
    if code == BFLOAT16:
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


def _read_dense(cursor: _Cursor, shape: tuple[int, ...]) -> NDArray[Any]:
    cursor.take(8, "the device of an array")
    return _elements(cursor, shape, _dtype(cursor), "an array")


def _read_sparse(cursor: _Cursor, storage: int) -> Stored | None:
    start = cursor.at
    stored = _shape(cursor)
    shape = _shape(cursor)
    if not shape:
        return None
    cursor.take(8, "the device of an array")
    code = _dtype(cursor)
    aux = []
    for _ in range(1 if storage == ROW_SPARSE else 2):
        at = cursor.at
        aux_code = _dtype(cursor)
        if np.dtype(DTYPES[aux_code]).kind not in "iu" or aux_code == BFLOAT16:
            raise cursor.error(at, f"indices have element type {aux_code}, which are no integers")
        aux.append((aux_code, _shape(cursor)))
    data = _elements(cursor, stored, code, "the stored part of an array")
    # An index too large for int64 turns negative, and is refused below as outside.
    indices = [
        _elements(cursor, aux_shape, aux_code, "indices").astype(np.int64)
        for aux_code, aux_shape in aux
    ]
    if storage == ROW_SPARSE:
        array: RowSparse | CsrArray = RowSparse(data, indices[0], shape)
    else:
        array = CsrArray(data, indices[0], indices[1], shape)
    wrong = _wrong_rows(array) if isinstance(array, RowSparse) else _wrong_csr(array)
    if wrong:
        raise cursor.error(start, f"a sparse array of shape {shape} {wrong}")
    return array


def _wrong_rows(array: RowSparse) -> str:
    """Return what is wrong with an array, or nothing."""
    indices = array.indices
    if indices.ndim != 1 or array.data.shape != (len(indices), *array.shape[1:]):
        return f"stores rows of shape {array.data.shape} under {indices.shape} indices"
    if len(indices) and not (indices[0] >= 0 and indices[-1] < array.shape[0]):
        return f"has row indices from {indices[0]} to {indices[-1]}"
    if (indices[1:] <= indices[:-1]).any():  # a difference could overflow
        return "has row indices that do not increase"
    return ""


def _wrong_csr(array: CsrArray) -> str:
    if len(array.shape) != 2 or array.data.ndim != 1 or array.indices.shape != array.data.shape:
        return f"stores values of shape {array.data.shape} under {array.indices.shape} indices"
    if array.indptr.shape != (array.shape[0] + 1,):
        return f"has {array.indptr.shape} row pointers"
    if array.indptr[0] != 0 or (array.indptr[1:] < array.indptr[:-1]).any():
        return "has row pointers that do not increase from 0"
    if array.indptr[-1] != len(array.data):
        return f"has {len(array.data)} values, but row pointers up to {array.indptr[-1]}"
    if len(array.indices) and not (
        array.indices.min() >= 0 and array.indices.max() < array.shape[1]
    ):
        return f"has column indices from {array.indices.min()} to {array.indices.max()}"
    return ""


def _write_array(file: BinaryIO, name: str, array: NDArray[Any] | RowSparse) -> None:
    is_sparse = isinstance(array, RowSparse)
    data = array.data if isinstance(array, RowSparse) else array
    dtype = data.dtype.newbyteorder("<") if data.dtype.itemsize > 1 else data.dtype
    if dtype not in CODES or not 1 <= data.ndim <= MAX_DIMS:
        raise InvalidParamError(
            f"The array {name!r} has type {data.dtype} and {data.ndim} dimensions; expected 1 to "
            f"{MAX_DIMS} dimensions and one of the types {', '.join(map(str, CODES))}."
        )
    file.write(struct.pack("<Ii", V2, ROW_SPARSE if is_sparse else DENSE))
    if is_sparse:
        file.write(_packed_shape(data.shape))
    file.write(_packed_shape(array.shape))
    file.write(struct.pack("<iii", 1, 0, CODES[dtype]))  # on the first CPU
    if isinstance(array, RowSparse):
        file.write(struct.pack("<i", CODES[np.dtype("<i8")]) + _packed_shape(array.indices.shape))
    for chunk in _chunks(data, dtype):
        file.write(chunk)
    if isinstance(array, RowSparse):
        for chunk in _chunks(array.indices, np.dtype("<i8")):
            file.write(chunk)


def _packed_shape(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<i{len(shape)}q", len(shape), *shape)


def _chunks(array: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Yield an array's bytes in row-major order, without a copy of the whole."""
    if array.size == 0:
        return
    step = max(1, CHUNK_BYTES // (array[:1].size * dtype.itemsize))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step], dtype).tobytes()
