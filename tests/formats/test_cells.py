"""Cells: decoding them together gives what decoding each by itself gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import RequestError
from spark_fm.formats.requests import (
    CONTENT_TYPES,
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    decode_cells,
    decode_request,
    encode_request,
)
from tests.formats.request_twins import DIM, rows_of

X = np.arange(3 * DIM, dtype=np.float64).reshape(3, DIM)


def pieces(content_type: str) -> list[bytes | None]:
    """Return cells with one instance, with several, and with none or wrong ones."""
    one, other = (encode_request(row, content_type) for row in X[:2])
    wrong = encode_request(np.ones(DIM + 1), content_type)
    cut = len(one) // 8 * 4
    return [one, one, other, None, encode_request(X, content_type), wrong, b"", one[:cut],
            one[cut:], b"\n", other + other]  # fmt: skip


@given(st.sampled_from(CONTENT_TYPES), st.booleans(), st.data())
@settings(max_examples=200)
def test_cells_are_read_as_if_each_stood_alone(content_type, one_each, data):
    chosen = data.draw(st.lists(st.sampled_from(pieces(content_type)), max_size=5))
    rows, counts, wrong = [], [], []
    for place, cell in enumerate(chosen):
        try:
            found = [] if cell is None else rows_of(
                decode_request(cell, content_type, feature_dim=DIM)
            )  # fmt: skip
        except RequestError:
            found = None
        if found is None or (one_each and len(found) > 1):
            wrong.append(place)
            found = []
        rows += found
        counts.append(len(found))

    cells = decode_cells(chosen, content_type, DIM, one_each=one_each)

    assert rows_of(cells.rows) == rows
    assert cells.counts.tolist() == counts
    assert sorted(cells.reasons) == wrong


@pytest.mark.parametrize("content_type", [JSONLINES, RECORDIO_PROTOBUF])
def test_records_or_lines_across_cells_are_no_instances_of_theirs(content_type):
    one = encode_request(X[0], content_type)
    both = [one + one, b"" if content_type == RECORDIO_PROTOBUF else b" "]

    cells = decode_cells(both, content_type, DIM, one_each=False)

    assert cells.counts.tolist() == [2, 0]
    assert list(cells.reasons) == [1]


def test_a_document_of_several_instances_is_not_one():
    cells = decode_cells([encode_request(X, JSON)], JSON, DIM, one_each=True)

    assert "holds 3 instances; expected one" in cells.reasons[0]
