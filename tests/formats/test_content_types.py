"""One object makes a content type known to requests, responses and batch transform."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pytest

from spark_fm.errors import InvalidParamError
from spark_fm.formats.batch_transform import Scorer, Transform, default_accept, transform
from spark_fm.formats.content_types import REGISTRY, ContentType, Predictions
from spark_fm.formats.requests import JSON, decode_request, encode_request, read_requests
from spark_fm.formats.responses import decode_response, encode_response, write_responses
from spark_fm.learner.csr import CsrBatch
from spark_fm.serving.http import request_format

CSV = "text/csv"


class Csv(ContentType):
    """Dense rows, answered by a score a line."""

    name = CSV

    def decode(self, body: bytes, feature_dim: int) -> CsrBatch:
        return CsrBatch.from_matrix(np.loadtxt(io.BytesIO(body), delimiter=",", ndmin=2))

    def read(self, stream: BinaryIO, feature_dim: int) -> Iterator[CsrBatch]:
        yield self.decode(stream.read(), feature_dim)

    def encode(self, rows: Any) -> bytes:
        out = io.BytesIO()
        np.savetxt(out, rows, "%g", ",")
        return out.getvalue()

    def predictions(self, scores: Any, labels: Any, first: int = 0) -> bytes:
        return b"".join(b"%g\n" % score for score in scores)

    def responses(self, scores: Any, labels: Any, first: int = 0) -> list[bytes]:
        return [b"%g" % score for score in scores]

    def decode_response(self, body: bytes) -> Predictions:
        return Predictions(np.array(body.split(), np.float32), None)

    def join(
        self, stream: BinaryIO, score: Callable[[CsrBatch], Predictions], feature_dim: int
    ) -> Iterator[tuple[bytes, int]]:
        body = stream.read()
        rows = self.decode(body, feature_dim)
        scores = self.responses(score(rows).scores, None)
        lines = zip(body.splitlines(), scores, strict=True)
        yield b"".join(line + b"," + text + b"\n" for line, text in lines), rows.n_rows


class Summing(Scorer):
    """A model whose score is the sum of a row."""

    def __init__(self) -> None:
        self.feature_dim = 2

    def __call__(self, batch: CsrBatch) -> Predictions:
        return Predictions(np.add.reduceat(batch.values, batch.indptr[:-1]), None)


def test_one_object_makes_a_content_type(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParamError, match="text/csv"):
        decode_request(b"1,2\n", CSV, feature_dim=2)

    monkeypatch.setitem(REGISTRY, CSV, Csv())

    X, scores = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([3, 7], np.float32)
    body = encode_request(X, CSV)
    assert body == b"1,2\n3,4\n"
    assert decode_request(body, "Text/CSV; header=absent", feature_dim=2).n_rows == 2
    assert [rows.n_rows for rows in read_requests(io.BytesIO(body), CSV, feature_dim=2)] == [2]
    assert encode_response(scores, None, CSV) == b"3\n7\n"
    assert decode_response(b"3\n7\n", CSV).scores.tolist() == [3, 7]
    out = io.BytesIO()
    assert write_responses([Predictions(scores, None)] * 2, out, CSV) == 4
    assert out.getvalue() == b"3\n7\n3\n7\n"
    assert default_accept(CSV, join=False) == CSV
    assert request_format(CSV) == CSV
    for job, expected in (
        (Transform(CSV, CSV, "out"), b"3\n7\n"),
        (Transform(CSV, CSV, "out", join=True), b"1,2,3\n3,4,7\n"),
        (Transform(CSV, JSON, "out"), b'{"predictions": [{"score": 3.0}, {"score": 7.0}]}'),
    ):
        out = io.BytesIO()
        assert transform(io.BytesIO(body), out, Summing(), job) == 2
        assert out.getvalue() == expected
