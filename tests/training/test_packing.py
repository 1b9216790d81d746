"""Packing gives every usable row once, counts the others, and cuts even blocks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import SparkFMError, VersionMismatchError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.statistics import FeatureCounts, FeatureMoments
from spark_fm.training import local_files, packing
from spark_fm.training.packing import (
    REPORT,
    TRAIN,
    VALIDATION,
    PackTask,
    RowStatistics,
    decode,
    encode,
    encode_rows,
    read_blocks,
)
from tests.builders import random_batch
from tests.formats.test_vectors import VECTOR, dense, sparse

TASK = PackTask(
    loss="logistic",
    feature_dim=0,
    has_weight=False,
    has_indicator=False,
    validation_fraction=0.0,
    seed=3,
    shuffle=True,
    block_multiple=4,
)


def record_batch(vectors, labels, **more):
    columns = {"features": pa.array(vectors, VECTOR), "label": pa.array(labels, pa.float64())}
    return pa.RecordBatch.from_pydict(columns | more)


def pack(task, *batches):
    return list(task(iter(batches)))


def stats_of(output):
    return next(
        json.loads(batch.column(7)[0].as_py())
        for batch in output
        if batch.column(5)[0].as_py() == "stats"
    )


def changed(**fields):
    return replace(TASK, **fields)


@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), max_size=5), max_size=6),
)
def test_a_block_decodes_to_the_rows_it_was_encoded_from(rows):
    indptr = np.cumsum([0] + [len(row) for row in rows])
    values = np.array([x for row in rows for x in row], np.float32)
    batch = CsrBatch.from_arrays(
        indptr,
        np.arange(len(values), dtype=np.int32),
        values,
        labels=np.arange(len(rows)) + 1e8 + 0.1,
        weights=np.full(len(rows), 5e-300),
    )

    back = decode(encode(batch), batch.n_rows, batch.nnz)

    for name in ("indptr", "indices", "values", "labels", "weights"):
        np.testing.assert_array_equal(getattr(back, name), getattr(batch, name))


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 9))
def test_rows_go_into_a_payload_as_they_go_there_by_way_of_a_batch(n_rows, n_taken, seed):
    batch = random_batch(max(1, n_rows), 5, seed=seed, weighted=True)
    rows = np.random.default_rng(seed).integers(0, batch.n_rows, n_taken)

    payload, taken = encode_rows(batch, rows)

    expected = batch.take(rows)
    assert bytes(payload) == encode(expected)
    assert encode(taken) == encode(expected)


def test_a_block_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="holds 3 bytes"):
        decode(b"abc", 1, 0)


def test_every_row_is_packed_once_in_a_multiple_of_blocks():
    vectors = [sparse({i % 6: float(i + 1)}) for i in range(50)]
    output = pack(TASK, record_batch(vectors, [float(i % 2) for i in range(50)]))

    blocks = list(read_blocks(output))

    assert len(blocks) == 4
    assert sorted(b.n_rows for _, _, _, b in blocks) == [12, 12, 13, 13]
    packed = sorted(x for _, _, _, b in blocks for x in b.values.tolist())
    assert packed == [float(i + 1) for i in range(50)]
    assert [seq for _, _, seq, _ in blocks] == [0, 1, 2, 3]


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 9), st.integers(1, 30))
def test_blocks_and_reports_do_not_depend_on_how_rows_come_in_batches(cuts, n_rows, nnz):
    vectors = [sparse({j: i + 0.1 for j in range(i % 6)}) if i % 9 else None for i in range(40)]
    vectors[5] = dense({0: 1.0})
    whole = record_batch(vectors, [float(i % 3 == 0) for i in range(40)])
    bounds = [0, *sorted(cuts), 40]
    batches = [whole.slice(a, b - a) for a, b in pairwise(bounds)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW_ROWS", n_rows)
        patch.setattr(packing, "WINDOW_NNZ", nnz)
        patch.setattr(packing, "STRETCH_ROWS", 12)
        output = pack(changed(validation_fraction=0.3), *batches)
        expected = pack(changed(validation_fraction=0.3), whole)

    assert output == expected


def test_fewer_rows_than_blocks_give_a_block_a_row():
    output = pack(TASK, record_batch([sparse({0: 1.0}), dense({1: 2.0})], [0.0, 1.0]))

    assert [b.n_rows for _, _, _, b in read_blocks(output)] == [1, 1]


def test_an_empty_partition_gives_a_report_and_no_blocks():
    output = pack(TASK)

    assert list(read_blocks(output)) == []
    assert stats_of(output)["train"]["rows"] == 0


def test_without_shuffle_rows_keep_their_order():
    vectors = [sparse({0: float(i + 1)}) for i in range(10)]
    output = pack(changed(shuffle=False), record_batch(vectors, [1.0] * 10))

    values = [x for _, _, _, b in read_blocks(output) for x in b.values.tolist()]
    assert values == [float(i + 1) for i in range(10)]


def test_each_kind_of_bad_row_is_counted_with_an_example():
    vectors = [
        None,
        sparse({1: float("nan")}),
        {"type": 0, "size": 6, "indices": [-1], "values": [1.0]},
        sparse({0: 1.0}),
        sparse({0: 1.0}),
        {"type": 0, "size": 6, "indices": [0, 1], "values": [1.0]},
        sparse({0: 1e300}),
        sparse({2: 1.0}),
    ]
    labels = [1.0, 1.0, 1.0, None, 2.0, 0.0, 0.0, 1.0]
    output = pack(TASK, record_batch(vectors, labels))

    stats = stats_of(output)

    assert stats["bad_rows"] == {
        "null features": 1,
        "vector with unequally many indices and values": 1,
        "feature index out of range": 1,
        "NaN or infinite feature value": 2,
        "null, NaN or infinite label": 1,
        "label other than 0 or 1": 1,
    }
    assert stats["bad_examples"]["feature index out of range"] == "index -1"
    assert stats["bad_examples"]["label other than 0 or 1"] == "2.0"
    assert stats["bad_examples"]["NaN or infinite feature value"] == "value nan at index 1"
    assert stats["train"]["rows"] == 1


def test_negative_weights_are_bad_and_zero_weights_are_not():
    batch = record_batch(
        [sparse({0: 1.0})] * 3, [1.0] * 3, weight=pa.array([-1.0, 0.0, 2.0], pa.float64())
    )
    stats = stats_of(pack(changed(has_weight=True), batch))

    assert stats["bad_rows"] == {"null, negative, NaN or infinite weight": 1}
    assert stats["train"]["rows"] == 1
    assert stats["train"]["mean_weight"] == 2.0
    assert stats["n_zero_weight"] == 1


def test_the_indicator_column_decides_validation_rows_and_null_is_training():
    flags = pa.array([True, False, None], pa.bool_())
    batch = record_batch([sparse({0: 1.0})] * 3, [1.0, 0.0, 0.0], validation=flags)
    blocks = list(read_blocks(pack(changed(has_indicator=True), batch)))

    rows = {kind: sum(b.n_rows for k, _, _, b in blocks if k == kind) for kind, *_ in blocks}
    assert rows == {TRAIN: 2, VALIDATION: 1}


def test_validation_rows_do_not_depend_on_how_the_rows_arrive():
    vectors = [sparse({i % 6: float(i)}) for i in range(1, 200)]
    labels = [float(i % 2) for i in range(1, 200)]
    task = changed(validation_fraction=0.3)

    def chosen(*batches):
        return sorted(
            x
            for kind, _, _, b in read_blocks(pack(task, *batches))
            if kind == VALIDATION
            for x in b.values.tolist()
        )

    whole = chosen(record_batch(vectors, labels))
    cut = chosen(record_batch(vectors[:70], labels[:70]), record_batch(vectors[70:], labels[70:]))
    backwards = chosen(record_batch(vectors[::-1], labels[::-1]))

    assert whole == cut == backwards
    assert 30 < len(whole) < 90


def test_feature_counts_are_reported_by_set():
    batch = record_batch([sparse({0: 1.0, 3: 1.0}), sparse({3: 2.0})], [1.0, 0.0])
    output = pack(TASK, batch)

    payload = next(b.column(7)[0].as_py() for b in output if b.column(5)[0].as_py() == "counts")

    counts = FeatureCounts.from_table(payload)
    assert counts.ids.tolist() == [0, 3]
    assert counts.train.tolist() == [1, 2]
    assert counts.validation.tolist() == [0, 0]


def test_moments_are_reported_of_features_with_a_value_other_than_1():
    batch = record_batch([sparse({0: 1.0, 3: 5.0}), sparse({3: 2.0})], [1.0, 0.0])
    output = pack(TASK, batch)

    payload = next(b.column(7)[0].as_py() for b in output if b.column(5)[0].as_py() == "moments")

    moments = FeatureMoments.from_table(payload)
    assert moments.ids.tolist() == [3]
    assert (moments.count[0], moments.mean[0], moments.square[0]) == (2, 3.5, 4.5)


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 100)), min_size=2, max_size=40),
    st.integers(1, 39),
    st.sampled_from([1e-300, 1.0, 1e300]),
    st.sampled_from([0.0, 1e8]),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_statistics_of_two_row_sets_are_those_of_both_at_any_weight_and_offset(
    rows, cut, factor, offset
):
    labels = np.array([label for label, _ in rows]) + offset
    weights = np.array([weight for _, weight in rows]) * factor
    batch = CsrBatch.from_arrays(
        np.zeros(len(rows) + 1), np.empty(0), np.empty(0), labels=labels, weights=weights
    )
    cut = min(cut, len(rows) - 1)

    whole = RowStatistics.of(batch)
    parts = RowStatistics.of(batch.between(0, cut)).plus(
        RowStatistics.of(batch.between(cut, len(rows)))
    )

    shares = weights / factor
    mean = np.average(labels - offset, weights=shares)
    variance = np.average((labels - offset - mean) ** 2, weights=shares)
    for seen in (whole, parts, RowStatistics().plus(whole)):
        assert seen.rows == len(rows)
        assert seen.mean_weight == pytest.approx(shares.mean() * factor, rel=1e-9)
        assert seen.label_mean - offset == pytest.approx(mean, rel=1e-9, abs=1e-6)
        assert seen.label_variance == pytest.approx(variance, rel=1e-6, abs=1e-9)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The one folder that Spark names to its workers."""
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    return tmp_path


def fifty_rows():
    vectors = [sparse({i % 6: float(i + 1)}) for i in range(50)]
    return record_batch(vectors, [float(i % 2) for i in range(50)])


def test_blocks_in_a_file_hold_the_rows_and_the_checksum_of_those_in_spark(folder):
    task = changed(validation_fraction=0.3)
    in_rows = pack(task, fifty_rows())

    in_file = pack(replace(task, store="fit", tables_in_file=True), fifty_rows())

    assert not any(batch.column(6).is_valid().to_pylist()[0] for batch in in_file)
    pairs = list(zip(read_blocks(in_file), read_blocks(in_rows), strict=True))
    assert len(pairs) > 4
    for (*found, rows), (*expected, expected_rows) in pairs:
        assert found == expected
        assert encode(rows) == encode(expected_rows)
    assert stats_of(in_file)["checksum"] == stats_of(in_rows)["checksum"]


def test_attempts_at_a_partition_write_files_of_their_own(folder):
    task = changed(store="fit")
    first = pack(task, fifty_rows())
    abandoned = task(iter([fifty_rows()]))
    next(abandoned)
    second = pack(task, fifty_rows())

    assert len(list(folder.glob("spark_fm-fit/*.blocks"))) == 3
    for packed in (first, second):
        assert sum(rows.n_rows for *_, rows in read_blocks(packed)) == 50


def test_a_disk_without_room_for_the_packed_rows_is_named(folder, monkeypatch):
    full = shutil.disk_usage(folder)._replace(free=0)
    monkeypatch.setattr(local_files.shutil, "disk_usage", lambda _: full)

    with pytest.raises(SparkFMError, match=f"{folder}.*No space left.*spark.local.dir"):
        pack(changed(store="fit"), fifty_rows())


def test_packed_rows_that_somebody_removed_are_named(folder):
    packed = pack(changed(store="fit"), fifty_rows())
    local_files.remove_store("fit")

    with pytest.raises(SparkFMError, match=rf"{folder}.*\.blocks.*is gone.*spark\.local\.dir"):
        list(read_blocks(packed))


def test_reports_are_not_blocks():
    output = pack(TASK, record_batch([sparse({0: 1.0})], [1.0]))

    assert sum(batch.column(0)[0].as_py() == REPORT for batch in output) == 2


def test_a_worker_of_another_version_refuses_by_name():
    task = changed()
    object.__setattr__(task, "version", "0.0.9")  # the driver's

    with pytest.raises(VersionMismatchError, match=r"driver runs spark_fm 0\.0\.9.*has spark_fm"):
        pack(task)
