"""MXNet's arrays come back bit for bit; broken files are errors that name the byte."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.mxnet import (
    V1,
    V2,
    V3,
    CsrArray,
    RowSparse,
    read_ndarrays,
    to_dense,
    write_ndarrays,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "mxnet"
# Values that MXNet 1.9.1 was given when it wrote mixed.params (NumPy's RandomState(0)).
NORMAL = np.random.RandomState(0).randn(7, 2, 3) * 10
TYPES = ["f4", "f8", "f2", "u1", "i4", "i1", "i8", "i2", "u2", "u4", "u8", "?"]
CPU_BACKEND = struct.pack("<ii", 1, 0)


def written(arrays: list[tuple[str, Any]]) -> bytes:
    file = io.BytesIO()
    write_ndarrays(file, arrays)
    return file.getvalue()


def listed(*bodies: bytes, names: list[bytes] = ()) -> bytes:  # type: ignore[assignment]
    """Return a container of bodies written by hand."""
    out = struct.pack("<QQQ", 0x112, 0, len(bodies)) + b"".join(bodies)
    out += struct.pack("<Q", len(names))
    return out + b"".join(struct.pack("<Q", len(name)) + name for name in names)


def shape(*sizes: int) -> bytes:
    return struct.pack(f"<i{len(sizes)}q", len(sizes), *sizes)


def v2(storage: int, *parts: bytes) -> bytes:
    return struct.pack("<Ii", V2, storage) + b"".join(parts)


def fails(data: bytes, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_ndarrays(data, source="here")
    assert str(caught.value).startswith("here is no readable file of MXNet arrays: at byte ")


def test_what_mxnet_wrote_is_read() -> None:
    found = dict(read_ndarrays((GOLDEN / "mixed.params").read_bytes(), source="mixed"))

    kinds = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64"]
    for kind, values in zip(kinds, NORMAL, strict=True):
        array = found[f"dense_{kind}"]
        assert array.dtype == kind
        assert array.shape == (2, 3)
        if kind in ("float32", "float64", "int32", "int64", "int8"):
            assert np.array_equal(array, values.astype(kind))
    assert found["dense_bool"].tolist() == [[True, False, True]]
    rows = found["row_sparse"]
    assert (rows.shape, rows.indices.tolist(), rows.data.shape) == ((6, 3), [1, 4], (2, 3))
    assert to_dense(rows, max_bytes=72, what="it").any(axis=1).tolist() == [0, 1, 0, 0, 1, 0]
    assert len(found["row_sparse_none"].indices) == 0
    csr = to_dense(found["csr"], max_bytes=48, what="it")
    assert csr.tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 0]]
    assert not to_dense(found["csr_none"], max_bytes=48, what="it").any()


def test_numpy_shapes_of_mxnet_are_read() -> None:
    found = dict(read_ndarrays((GOLDEN / "v3.params").read_bytes(), source="v3"))

    assert found["scalar"].shape == ()
    assert float(found["scalar"]) == 3.5
    assert found["none"].shape == (0, 2)
    assert found["x"].tolist() == [[1, 2]]


def test_a_container_without_names_is_read() -> None:
    [(name, array)] = read_ndarrays((GOLDEN / "nameless.params").read_bytes(), source="list")

    assert (name, array.tolist()) == ("", [1, 2, 3])


def test_our_bytes_are_those_of_mxnet() -> None:
    data = (GOLDEN / "mixed.params").read_bytes()
    kept = [(n, a) for n, a in read_ndarrays(data, source="mixed") if not isinstance(a, CsrArray)]
    first = data[24 : data.index(struct.pack("<Ii", V2, 2))]  # arrays before the first csr

    ours = written(kept)

    assert ours[24 : 24 + len(first)] == first


def test_the_oldest_form_is_read(data_folder: Path) -> None:
    path = data_folder / "sagemaker" / "mxnet-ndarray" / "legacy_ndarray.v0"

    arrays = read_ndarrays(path.read_bytes(), source=str(path))

    assert len(arrays) == 6
    for name, array in arrays:
        assert name == ""
        assert np.array_equal(array, np.arange(128, dtype=np.float32))


def test_every_version_of_a_dense_array_is_the_same_array() -> None:
    values = np.arange(6, dtype="<f4")
    ending = CPU_BACKEND + struct.pack("<i", 0) + values.tobytes()
    bodies = [
        struct.pack("<III", 2, 2, 3) + ending,
        struct.pack("<I", V1) + shape(2, 3) + ending,
        v2(0, shape(2, 3)) + ending,
        struct.pack("<Ii", V3, 0) + shape(2, 3) + ending,
    ]

    for _, array in read_ndarrays(listed(*bodies), source="all"):
        assert np.array_equal(array, values.reshape(2, 3))


def test_arrays_of_unknown_shape_are_none() -> None:
    unknown = struct.pack("<Iii", V3, 0, -1)
    bodies = [struct.pack("<I", 0), struct.pack("<I", V1) + shape(), v2(0, shape()), unknown]

    assert [a for _, a in read_ndarrays(listed(*bodies), source="x")] == [None] * 4


def test_bfloat16_becomes_the_same_float32() -> None:
    values = np.array([1.5, -2.25, 3e38, 0.0, np.inf], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    body = v2(0, shape(5), CPU_BACKEND, struct.pack("<i", 12), upper.tobytes())

    [(_, array)] = read_ndarrays(listed(body), source="x")

    assert array.dtype == np.float32
    assert array.tolist() == (upper.astype(np.uint32) << 16).view(np.float32).tolist()


dense_arrays = st.sampled_from(TYPES).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@st.composite
def row_sparse_arrays(draw: st.DrawFn) -> RowSparse:
    n_rows = draw(st.integers(1, 2**40))
    wanted = st.lists(st.integers(0, n_rows - 1), unique=True, max_size=6)
    indices = np.array(sorted(draw(wanted)), np.int64)
    rest = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=4))
    data = draw(hnp.arrays("f4", (len(indices), *rest)))
    return RowSparse(data, indices, (n_rows, *rest))


@given(st.dictionaries(st.text(), dense_arrays | row_sparse_arrays(), max_size=5))
def test_what_is_written_comes_back_bit_for_bit(arrays: dict[str, Any]) -> None:
    back = read_ndarrays(written(list(arrays.items())), source="x")

    assert [name for name, _ in back] == list(arrays)
    for (_, found), array in zip(back, arrays.values(), strict=True):
        assert found.shape == array.shape
        if isinstance(array, RowSparse):
            assert found.indices.tolist() == array.indices.tolist()
            found, array = found.data, array.data
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


def test_arrays_in_any_order_of_memory_and_bytes_are_written_alike() -> None:
    plain = np.arange(12, dtype="<f4").reshape(3, 4)

    for other in (np.asfortranarray(plain), plain.astype(">f4"), np.repeat(plain, 2, 1)[:, ::2]):
        assert written([("x", other)]) == written([("x", plain)])


@pytest.mark.parametrize("array", [np.zeros(2, "c8"), np.array(["a"]), np.float32(1) * np.ones(())])
def test_what_the_format_does_not_have_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidParamError, match="'x' has type"):
        written([("x", array)])


FLOAT = struct.pack("<i", 0)
INT64 = struct.pack("<i", 6)
ROWS = v2(1, shape(2, 3), shape(9, 3), CPU_BACKEND, FLOAT, INT64, shape(2), bytes(24))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs 8 bytes, but only 0"),
        (b"PK" + bytes(40), "does not begin with"),
        (struct.pack("<QQQ", 0x112, 0, 2**62), "claims 4,611,686,018,427,387,904 arrays"),
        (listed(struct.pack("<I", 2**31)), "2,147,483,648 dimensions"),
        (listed(struct.pack("<I", V1) + struct.pack("<i", -5)), "-5 dimensions"),
        (listed(v2(0, shape(3, -1))), r"shape \(3, -1\)"),
        (listed(v2(0, shape(2**40, 2**40), CPU_BACKEND, FLOAT)), "impossible shape"),
        (listed(v2(0, shape(0, 2**62), CPU_BACKEND, FLOAT)), "impossible shape"),
        (listed(v2(0, shape(2**33), CPU_BACKEND, FLOAT)), "needs 34,359,738,368 bytes"),
        (listed(v2(0, shape(1), CPU_BACKEND, struct.pack("<i", 77), bytes(4))), "element type 77"),
        (listed(v2(7)), "storage type 7"),
        (listed(struct.pack("<Ii", V3, 1)), "storage type 1"),
        (listed(ROWS + struct.pack("<qq", 4, 4)), "do not increase"),
        (listed(ROWS + struct.pack("<qq", 4, 9)), "indices from 4 to 9"),
        (listed(ROWS + struct.pack("<qq", -1, 4)), "indices from -1 to 4"),
        (listed(v2(1, shape(2, 2), shape(9, 3), CPU_BACKEND, FLOAT, INT64, shape(2), bytes(32))),
         "stores rows"),
        (listed(v2(1, shape(0, 3), shape(9, 3), CPU_BACKEND, FLOAT, FLOAT)), "no integers"),
        (listed(v2(2, shape(1), shape(1, 9), CPU_BACKEND, FLOAT, INT64, shape(2), INT64, shape(1),
                   bytes(4), struct.pack("<qqq", 0, 1, 9))), "column indices from 9"),
        (listed(v2(2, shape(1), shape(1, 9), CPU_BACKEND, FLOAT, INT64, shape(2), INT64, shape(1),
                   bytes(4), struct.pack("<qqq", 0, 2, 0))), "row pointers up to 2"),
        (listed(names=[b"x"]), "1 names for 0 arrays"),
        (listed(v2(0, shape()), names=[b"\xff"]), "not UTF-8"),
        (listed(v2(0, shape()), v2(0, shape()), names=[b"x", b"x"]), "two arrays are called 'x'"),
        (listed() + b"more", "4 bytes follow"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_with_the_reason(data: bytes, message: str) -> None:
    fails(data, message)


def test_indices_that_wrap_around_do_not_pass_for_increasing() -> None:
    body = v2(1, shape(4, 1), shape(9, 1), CPU_BACKEND, FLOAT, INT64, shape(4), bytes(16))
    wrapping = struct.pack("<qqqq", 5, -(2**63), -1, 8)  # differences in int64 are positive

    fails(listed(body + wrapping), "do not increase")


def test_every_cut_of_a_file_is_refused() -> None:
    data = (GOLDEN / "mixed.params").read_bytes()

    for length in range(len(data)):
        fails(data[:length], "byte")


MIXED = (GOLDEN / "mixed.params").read_bytes()


@given(st.lists(st.tuples(st.integers(0, len(MIXED) - 1), st.integers(0, 255)), min_size=1))
@example([(16, 255), (23, 127)])
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(MIXED)
    for at, value in changes:
        data[at] = value

    try:
        arrays = read_ndarrays(bytes(data), source="x")
    except ModelFormatError:
        return
    n_bytes = sum(
        (a if isinstance(a, np.ndarray) else a.data).nbytes for _, a in arrays if a is not None
    )
    assert n_bytes <= len(MIXED)


def test_a_small_file_that_claims_a_huge_array_is_not_filled_in() -> None:
    [(_, rows)] = read_ndarrays(
        written([("v", RowSparse(np.ones((1, 4), np.float32), np.array([7]), (2**40, 4)))]),
        source="x",
    )

    with pytest.raises(ModelFormatError, match=r"v has shape .* at most 1,000 are allowed"):
        to_dense(rows, max_bytes=1000, what="v")
