"""Reading: the same rows as the protobuf library, whatever the bytes are."""

from __future__ import annotations

import gzip
import io
import random
import tracemalloc

import numpy as np
import pytest

from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import unzipped
from spark_fm.formats.recordio.framing import MAGIC_BYTES
from spark_fm.formats.recordio.reader import RecordReader
from spark_fm.formats.recordio.record_pb2 import Record
from spark_fm.recordio import read_batches, read_records, write_records
from tests.formats import mutations
from tests.formats.mutations import cut, framed, quickly, random_record, slowly


@pytest.mark.parametrize(("kind", "cases"), [("message", 2500), ("file", 2500), ("damage", 500)])
def test_broken_input_never_gives_a_wrong_row_or_hangs(kind, cases):
    check = getattr(mutations, f"check_{kind}")
    for case in range(cases):
        check(random.Random(case))


@pytest.mark.parametrize(
    "wrong", [lambda rows: rows[:-1], lambda rows: [*rows, 7], lambda rows: []]
)
def test_the_checks_see_wrong_rows(monkeypatch, wrong):
    def quickly_but_wrong(data, chunk_bytes=2**20):
        rows, reasons = quickly(data, chunk_bytes)
        return wrong(rows), reasons

    monkeypatch.setattr(mutations, "quickly", quickly_but_wrong)
    for check in mutations.CHECKS:
        found = []
        for case in range(20):
            try:
                check(random.Random(case))
            except (AssertionError, IndexError) as err:
                found.append(err)
        assert found, check.__name__


def test_time_is_bounded_on_bytes_made_to_look_like_frames():
    """A megabyte of each takes a second or so; in quadratic time the test's limit strikes."""
    many_parts = framed(b"", 1) + framed(b"", 2) * 2**17
    nested = (MAGIC_BYTES + (2**19).to_bytes(4, "little")) * 2**17
    shared = b"".join(framed(b"x" * 8 * n, 1)[:8] for n in range(2**16, 0, -1)) + many_parts
    for data in (many_parts, nested, shared, MAGIC_BYTES * 2**18):
        rows, reasons = [], []
        reader = RecordReader(
            io.BytesIO(data + framed(random_record(random.Random(1)))),
            on_malformed=reasons.append,
            chunk_bytes=2**16,
        )
        for batch in reader:
            rows.append(batch.n_rows)
        assert sum(rows) == 1
        assert reasons


def test_a_long_run_of_damage_is_one_report_and_good_rows_follow(monkeypatch):
    monkeypatch.setattr("spark_fm.formats.recordio.decode.SEARCH_BYTES", 1000)
    good = framed(random_record(random.Random(1)))
    look_alikes = framed(b"\x07" * 20) * 200

    rows, reasons = quickly(good + b"junk" + look_alikes + good * 2)

    assert len(rows) == 3
    assert len(reasons) == 1


def test_sound_records_of_every_form_are_read_as_the_library_reads_them():
    rng = random.Random(5)
    payloads = [random_record(rng) for _ in range(3000)]

    rows, reasons = quickly(b"".join(map(framed, payloads)))

    expected = [slowly(payload) for payload in payloads]
    assert repr(rows) == repr([row for row in expected if not isinstance(row, str)])
    assert reasons == [row for row in expected if isinstance(row, str)]
    assert len(rows) > 2000


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1000])
def test_the_size_of_chunks_changes_nothing(chunk_bytes):
    rng = random.Random(6)
    data = b"".join(framed(random_record(rng)) for _ in range(60))

    assert repr(quickly(data, chunk_bytes)) == repr(quickly(data))


def test_every_real_file_gives_what_the_library_gives(data_folder):
    folder = data_folder / "sagemaker" / "recordio-xgboost-container"
    files = sorted(path for path in folder.rglob("*.pb*") if path.is_file())
    assert len(files) >= 10
    for path in files:
        data = path.read_bytes()
        expected, place = [], 0
        while place < len(data):
            length = int.from_bytes(data[place + 4 : place + 8], "little")
            expected.append(slowly(data[place + 8 : place + 8 + length]))
            place += 8 + length + -length % 4
        rows, reasons = quickly(data)
        assert repr(rows) == repr(expected)
        assert not reasons


def unpacked_record() -> bytes:
    """Tensor fields one by one, in an unusual order, as proto2 allows."""
    tensor = (
        b"\x18\x09" + b"\x10\x01" + b"\x0d\x00\x00\x00\x40" + b"\x10\x05" + b"\x0d\x00\x00\x40\x40"
    )
    value = b"\x12" + bytes([len(tensor)]) + tensor
    entry = b"\x0a\x06values\x12" + bytes([len(value)]) + value
    return b"\x1a\x01u" + b"\x0a" + bytes([len(entry)]) + entry


def test_unpacked_numbers_in_any_order_are_read():
    rows, reasons = quickly(framed(unpacked_record()))

    assert not reasons
    assert repr(rows) == repr([({1: 2.0, 5: 3.0}, 9, False, float("nan"), b"u", None)])
    assert repr(rows[0]) == repr(slowly(unpacked_record()))


def test_the_parts_of_a_record_are_joined_with_the_magic_put_back():
    record = Record()
    magic_as_float = np.frombuffer(MAGIC_BYTES, "<f4")[0]
    record.features["values"].float32_tensor.values.extend(
        [1.0, magic_as_float, 2.0, magic_as_float]
    )
    payload = record.SerializeToString()
    # dmlc's writer cuts at aligned magics only: align the first with unknown bytes before.
    parts = payload.split(MAGIC_BYTES)
    assert len(parts) == 3
    data = framed(parts[0], 1) + framed(parts[1], 2) + framed(parts[2], 3) + framed(payload)

    rows, reasons = quickly(data)

    assert not reasons
    assert repr(rows[0]) == repr(rows[1]) == repr(slowly(payload))


def test_the_plainly_cut_parts_of_a_record_are_joined_wherever_the_cuts_are():
    for seed in range(20):
        payload = random_record(random.Random(seed))
        whole = quickly(framed(payload) * 2)
        for place in range(len(payload) + 1):
            assert repr(quickly(cut(payload, place) + framed(payload))) == repr(whole)
        middle = len(payload) // 2
        assert repr(quickly(cut(payload, 0, middle, middle, middle + 1) * 2)) == repr(whole)


def test_parts_cut_as_in_the_file_that_mlio_tests_with_are_read():
    # tests/resources/recordio/split_records.pr of awslabs/ml-io: cut after 8, 18 and 19 bytes.
    records = io.BytesIO()
    write_records(records, [[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]], [1, 2])
    payloads = [records.getvalue()[8:56], records.getvalue()[64:112]]
    X, y = read_records(io.BytesIO(b"".join(cut(payload, 8, 18, 19) for payload in payloads)))

    assert X.toarray().tolist() == [[0, 1, 0], [0, 0, 2]]
    assert y.tolist() == [1, 2]


@pytest.mark.parametrize("flags", [(2,), (3,), (1, 0), (1, 1)])
def test_parts_out_of_order_are_malformed(flags):
    payload = random_record(random.Random(1))
    _, reasons = quickly(b"".join(framed(payload, flag) for flag in flags))

    assert reasons
    assert "part" in reasons[0] or "ends inside" in reasons[0]


def test_a_file_cut_anywhere_inside_a_record_is_malformed_not_short():
    payloads = [random_record(random.Random(seed)) for seed in (1, 2)]
    data = framed(payloads[0]) + framed(payloads[1])
    whole = len(framed(payloads[0]))
    for size in range(1, len(data)):
        rows, reasons = quickly(data[:size])
        if size == whole:
            assert (len(rows), reasons) == (1, [])
        else:
            assert len(rows) == (size > whole)
            assert len(reasons) == 1
            assert "ends inside a record" in reasons[0] or "magic" in reasons[0]


def test_the_error_names_file_offset_record_and_reason(tmp_path):
    path = tmp_path / "broken.pbr"
    good = framed(random_record(random.Random(1)))
    path.write_bytes(good * 3 + b"\0\1\2\3" + good)

    with pytest.raises(InvalidDataError) as caught:
        list(read_batches(path))

    text = str(caught.value)
    assert f"{path}: record 3 at byte {3 * len(good)}" in text
    assert "0a 23 d7 ce" in text
    assert "00 01 02 03" in text


def test_reading_goes_on_after_a_broken_frame_when_asked_to():
    good = framed(random_record(random.Random(1)))
    for junk in (b"\0" * 40, MAGIC_BYTES * 5, MAGIC_BYTES + b"\xff\xff\xff\x1f" * 6):
        rows, reasons = quickly(good * 2 + junk + good * 3, chunk_bytes=64)
        assert len(rows) == 5
        assert len(reasons) == 1


def test_a_length_word_that_claims_gigabytes_allocates_nothing():
    data = MAGIC_BYTES + (2**29 - 1).to_bytes(4, "little") + b"\0" * 100
    quickly(data)
    tracemalloc.start()
    _, reasons = quickly(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert "claims 536870911 bytes" in reasons[0]
    # The reader's own first arrays: 2^18 entries of 12 bytes, 2^14 rows of 65.
    assert peak < 16 * 2**20


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (([], [], [4]), ({}, 4, False)),  # shape only: a row of zeros
        (([], [], []), ({}, -1, False)),
        (([1.0, 0.0], [], []), ({0: 1.0, 1: 0.0}, 2, True)),  # values without keys
        (([1.0, 2.0], [3, 1], [4]), ({1: 2.0, 3: 1.0}, 4, False)),  # unsorted
        (([1.0, 2.0], [3, 3], [4]), ({3: 3.0}, 4, False)),  # repeated: added up
        (([1.0, 2.0], [3, 1], [1, 4]), ({1: 2.0, 3: 1.0}, 4, False)),  # one row of a matrix
        (([1.0], [4], [4]), "key 4 is outside the 4 features of the shape"),
        (([1.0], [1, 2], [4]), "2 keys for 1 values"),
        (([1.0, 2.0], [1], [4]), "1 keys for 2 values"),
        (([1.0], [], [4]), "1 dense values, but the shape says 4"),
        (([1.0], [1], [2, 4]), "a tensor of shape [2, 4]; a row has one dimension"),
        (([1.0], [2**31], []), "key 2147483648 is larger than 2147483646"),
    ],
)
def test_odd_rows_are_read_or_refused_as_stated(entries, expected):
    record = Record()
    tensor = record.features["values"].float32_tensor
    for field, numbers in zip((tensor.values, tensor.keys, tensor.shape), entries, strict=True):
        field.extend(numbers)
    record.features["values"].float32_tensor.SetInParent()

    rows, reasons = quickly(framed(record.SerializeToString()))

    if isinstance(expected, str):
        assert (rows, reasons) == ([], [expected])
    else:
        assert not reasons
        assert repr(rows[0][:3]) == repr(expected)


def test_matrices_come_back_as_they_were_written(tmp_path):
    rng = np.random.default_rng(2)
    X = (rng.random((300, 40)) * (rng.random((300, 40)) < 0.2)).astype(np.float32)
    y = rng.integers(0, 2, 300).astype(np.float32)
    path = tmp_path / "rows.pbr"
    write_records(path, X, y)
    dense, labels = read_records(path)
    import scipy.sparse as sp

    write_records(path, sp.csr_array(X), y)
    (tmp_path / "rows.pbr.gz").write_bytes(gzip.compress(path.read_bytes()))
    for source in (path, tmp_path / "rows.pbr.gz", io.BytesIO(path.read_bytes())):
        sparse, labels_too = read_records(source)
        np.testing.assert_array_equal(sparse.toarray(), X)
        np.testing.assert_array_equal(labels_too, y)
        assert sparse.nnz == np.count_nonzero(X)
    np.testing.assert_array_equal(dense.toarray(), X)
    np.testing.assert_array_equal(labels, y)
    assert dense.dtype == sparse.dtype == np.float32


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_compressed_data_are_malformed_after_the_rows_before(tmp_path, damage):
    rng = np.random.default_rng(0)
    write_records(tmp_path / "a.pbr", rng.random((4000, 3)))
    packed = bytearray(gzip.compress((tmp_path / "a.pbr").read_bytes()))
    if damage == "cut":
        del packed[-200:]
    else:
        packed[-200] ^= 255
    (tmp_path / "a.pbr.gz").write_bytes(packed)

    found = []
    with (tmp_path / "a.pbr.gz").open("rb") as stream:
        reader = RecordReader(unzipped(stream), source="a", on_malformed=found.append)
        n_rows = sum(batch.n_rows for batch in reader)

    assert 3900 < n_rows < 4000 if damage == "cut" else n_rows <= 4000
    assert len(found) == 1
    assert damage == "changed" or "the compressed data are damaged" in str(found[0])
    with pytest.raises(InvalidDataError, match=r"a\.pbr\.gz: record \d+ at byte \d+: "):
        read_records(tmp_path / "a.pbr.gz")


def test_numbers_beyond_float32_and_records_beyond_the_limit_are_refused(tmp_path):
    record = Record()
    record.features["values"].float64_tensor.values.extend([1.0, 1e300])
    (tmp_path / "a.pbr").write_bytes(framed(record.SerializeToString()))
    write_records(tmp_path / "b.pbr", np.ones((1, 100_000)))

    with pytest.raises(InvalidDataError, match="1e\\+300"):
        read_records(tmp_path / "a.pbr")
    with pytest.raises(InvalidDataError, match="limit of 100000"):
        read_records(tmp_path / "b.pbr", max_record_bytes=100_000)
    assert read_records(tmp_path / "b.pbr", max_record_bytes=2**20)[0].shape == (1, 100_000)


def test_records_that_disagree_on_the_number_of_features_are_refused(tmp_path):
    import scipy.sparse as sp

    path = tmp_path / "rows.pbr"
    with path.open("wb") as file:
        write_records(file, sp.csr_matrix([[0.0, 1.0]]), [1])
        write_records(file, sp.csr_matrix([[0.0, 1.0, 0.0]]), [1])

    with pytest.raises(InvalidDataError, match="2 at first, 3 in record 1"):
        read_records(path)
    X, _ = read_records(path, n_features=3)
    assert X.shape == (2, 3)
    with pytest.raises(InvalidDataError, match="outside n_features=1"):
        read_records(path, n_features=1)


def test_an_empty_file_holds_no_rows():
    assert list(RecordReader(io.BytesIO(b""))) == []
    X, y = read_records(io.BytesIO(b""))
    assert X.shape == (0, 0)
    assert len(y) == 0
