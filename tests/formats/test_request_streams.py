"""Requests of any length are read in batches and bounded memory, and fail where they are bad."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.errors import RequestError
from spark_fm.formats import content_types
from spark_fm.formats.requests import (
    CONTENT_TYPES,
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    decode_request,
    encode_request,
    read_requests,
)
from spark_fm.learner.csr import CsrBatch
from tests.formats.request_twins import rows_of


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("max_rows", [1, 3, 100])
def test_reading_a_stream_gives_the_rows_in_batches(content_type, max_rows, monkeypatch):
    monkeypatch.setattr(content_types, "CHUNK_BYTES", 50)
    X = sp.csr_array(sp.random(40, 9, density=0.3, format="csr", random_state=1))
    body = encode_request(X, content_type)
    batches = list(read_requests(io.BytesIO(body), content_type, feature_dim=9, max_rows=max_rows))

    assert max(batch.n_rows for batch in batches) <= max_rows
    together = CsrBatch.concat(batches)
    assert rows_of(together) == rows_of(decode_request(body, content_type, feature_dim=9))
    assert together.n_rows == len(together.labels) == len(together.weights) == 40


def test_a_bad_line_far_on_is_named_by_its_number(monkeypatch):
    monkeypatch.setattr(content_types, "CHUNK_BYTES", 64)
    lines = b'{"features": [1, 2]}\n\r\n' * 100 + b'{"features": [1]}\n'
    with pytest.raises(RequestError, match="Instance 100 has 1 dense") as caught:
        list(read_requests(io.BytesIO(lines), JSONLINES, feature_dim=2))

    assert caught.value.instance == 100


@pytest.mark.parametrize(("content_type", "size"), [(JSONLINES, 2**22), (RECORDIO_PROTOBUF, 2**28)])
def test_a_long_stream_takes_bounded_memory(content_type, size, monkeypatch):
    monkeypatch.setattr(content_types, "CHUNK_BYTES", 2**15)
    body = encode_request(np.ones((50, 100)), content_type)

    class Long(io.RawIOBase):
        left = size

        def read(self, wanted=-1):
            taken = min(wanted, self.left) // len(body) * len(body)
            self.left -= taken
            return body * (taken // len(body))

    tracemalloc.start()
    n_rows = sum(b.n_rows for b in read_requests(Long(), content_type, feature_dim=100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert n_rows > 5000
    assert peak < size / 2


def test_streams_without_instances_have_no_batches_and_documents_are_refused():
    for content_type in (JSONLINES, RECORDIO_PROTOBUF):
        assert list(read_requests(io.BytesIO(b""), content_type, feature_dim=2)) == []
    with pytest.raises(RequestError):
        list(read_requests(io.BytesIO(b'{"instances": []}'), JSON, feature_dim=2))


def test_what_is_too_long_to_read_at_once_is_refused(monkeypatch):
    monkeypatch.setattr(content_types, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(content_types, "CHUNK_BYTES", 100)
    monkeypatch.setattr(content_types, "MAX_DOCUMENT_BYTES", 1000)
    long = b'{"features": [' + b"1, " * 1000
    for content_type in (JSON, JSONLINES):
        with pytest.raises(RequestError, match="more than"):
            list(read_requests(io.BytesIO(long), content_type, feature_dim=2))
