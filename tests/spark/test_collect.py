"""Large arrays leave a task in chunks of at most 4 MiB and arrive whole."""

from __future__ import annotations

import random

import numpy as np
import pytest

from spark_fm.spark.collect import CHUNK_BYTES, from_chunks, to_chunks


def rows_of(batches):
    names = ("name", "part", "payload")
    return [tuple(batch.column(name)[0].as_py() for name in names) for batch in batches]


def test_arrays_and_facts_come_back_whole_from_pieces_in_any_order():
    rng = np.random.default_rng(5)
    arrays = {
        "large": rng.standard_normal((3, 700_000)).astype(np.float32),
        "none": np.zeros((0, 4), np.float32),
        "ids": np.arange(7, dtype=np.int32),
    }
    rows = rows_of(to_chunks(2, {"bias": 0.1}, arrays))
    random.Random(1).shuffle(rows)

    facts, back = from_chunks(rows)

    assert facts == {"bias": 0.1}
    assert max(len(payload) for _, _, payload in rows) <= CHUNK_BYTES
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_a_missing_piece_is_noticed():
    arrays = {"large": np.zeros(2 * CHUNK_BYTES, np.uint8)}
    rows = rows_of(to_chunks(0, {}, arrays))

    with pytest.raises(RuntimeError, match="bytes arrived"):
        from_chunks(rows[:-1])
