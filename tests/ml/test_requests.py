"""Columns of requests become vectors, and scores become responses, on Classic and Connect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.linalg import SparseVector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachineModel, instance_vector, request_vectors, response_body
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError, RequestError
from spark_fm.formats.requests import JSON, JSONLINES, RECORDIO_PROTOBUF, encode_request
from spark_fm.formats.responses import decode_response, encode_response
from spark_fm.scoring.requests import VectorsTask, encoded

pytestmark = pytest.mark.connect

X = np.array([[0, 2, 0, 3.5], [0, 0, 0, 0], [1, 1, 1, 1]])
LINES = encode_request(X, JSONLINES).decode().splitlines()
RECORDS = [encode_request(row, RECORDIO_PROTOBUF) for row in X]


def requests(spark: SparkSession, cells: list[object], kind: str = "string") -> DataFrame:
    rows = [(i, cell) for i, cell in enumerate(cells)]
    return spark.createDataFrame(rows, f"id int, request {kind}").orderBy("id")


def arrays(frame: DataFrame, column: object) -> list[object]:
    found = [row[0] for row in frame.select(column).collect()]
    return [None if each is None else each.toArray().tolist() for each in found]


@pytest.mark.parametrize(
    ("cells", "kind", "content_type"),
    [
        (LINES, "string", JSONLINES),
        ([line.encode() for line in LINES], "binary", JSONLINES),
        ([f'{{"instances": [{line}]}}' for line in LINES], "string", JSON),
        (RECORDS, "binary", RECORDIO_PROTOBUF),
    ],
)
def test_each_cell_with_an_instance_becomes_its_vector(spark, cells, kind, content_type):
    frame = requests(spark, [cells[0], None, *cells[1:]], kind)

    vectors = arrays(frame, instance_vector("request", feature_dim=4, content_type=content_type))

    assert vectors == [X[0].tolist(), None, *X[1:].tolist()]


def test_a_body_becomes_the_vectors_of_its_instances(spark):
    bodies = [encode_request(X, JSON), None, encode_request(X[:1], JSON)]
    frame = requests(spark, bodies, "binary")
    vectors = request_vectors(F.col("request"), feature_dim=4, content_type=JSON)

    counts = [row[0] for row in frame.select(F.size(vectors)).collect()]
    exploded = frame.select("id", F.posexplode(vectors)).orderBy("id", "pos").collect()

    assert counts in ([3, -1, 1], [3, None, 1])  # without or with ANSI mode
    assert isinstance(exploded[0]["col"], SparseVector)
    assert [row["col"].toArray().tolist() for row in exploded] == [*X.tolist(), X[0].tolist()]


def test_a_cell_that_cannot_be_read_is_an_error_or_null(spark):
    frame = requests(spark, [LINES[0], '{"features": [1]}', "", "\n".join(LINES[:2]), LINES[2]])

    with pytest.raises(PySparkException, match="has 1 dense values; the model has 4 features"):
        frame.select(instance_vector("request", feature_dim=4)).collect()
    kept = arrays(frame, instance_vector("request", feature_dim=4, handle_invalid="keep"))

    assert kept == [X[0].tolist(), None, None, None, X[2].tolist()]


def test_requests_are_scored_and_answered(
    spark: SparkSession, classifier: FactorizationMachineModel, regressor: FactorizationMachineModel
) -> None:
    rows = np.eye(20, dtype=np.float32)[:6] * 2
    frame = requests(spark, encode_request(rows, JSONLINES).decode().splitlines())
    frame = frame.withColumn("features", instance_vector("request", feature_dim=20))

    for model, label in ((classifier, "predicted_label"), (regressor, None)):
        scored = model.transform(frame).orderBy("id")
        scores = model.predict(rows)
        labels = None if label is None else (scores >= 0.5).astype(np.float32)
        for accept, many in ((JSONLINES, b"\n"), (RECORDIO_PROTOBUF, b"")):
            bodies = [
                row[0]
                for row in scored.select(response_body("score", label, accept=accept)).collect()
            ]
            cells = [bytes(b) if accept == RECORDIO_PROTOBUF else b.encode() for b in bodies]
            found = decode_response(many.join(cells), accept)
            assert found.scores == pytest.approx(scores, rel=1e-6)
            assert (found.labels is None) == (labels is None)
            assert labels is None or found.labels.tolist() == labels.tolist()


def test_responses_are_those_of_the_library(spark):
    frame = spark.createDataFrame(
        [(0, 0.4, 0.0), (1, None, 1.0), (2, 0.75, 1.0)], "id int, score double, label double"
    ).orderBy("id")
    first, last = (
        encode_response(np.float32([score]), np.float32([label]), JSON)
        for score, label in ((0.4, 0), (0.75, 1))
    )

    documents = [
        row[0]
        for row in frame.select(response_body("score", F.col("label"), accept=JSON)).collect()
    ]

    assert documents == [first.decode(), None, last.decode()]
    assert json.loads(documents[2]) == {"predictions": [{"score": 0.75, "predicted_label": 1.0}]}


def test_wrong_arguments_are_refused():
    for wrong in ({"feature_dim": 0}, {"feature_dim": 4, "content_type": "text/csv"},
                  {"feature_dim": 4, "handle_invalid": "skip"}):  # fmt: skip
        with pytest.raises(InvalidParamError):
            instance_vector("request", **wrong)
    with pytest.raises(InvalidParamError):
        response_body(accept="text/csv")


def test_the_way_without_arrow_functions_gives_the_same(spark, monkeypatch):
    """PySpark 4.0 has no arrow_udf."""
    frame = requests(spark, [LINES[0], None, *LINES[1:]])
    bodies = requests(spark, [encode_request(X, JSON), None], "binary")
    scores = spark.createDataFrame([(0.4, 0.0), (None, 1.0)], "score double, label double")
    columns = [
        (frame, lambda: instance_vector("request", feature_dim=4)),
        (bodies, lambda: request_vectors("request", feature_dim=4, content_type=JSON)),
        *((scores, lambda a=accept: response_body("score", "label", accept=a))
          for accept in (JSON, RECORDIO_PROTOBUF)),
        (scores, lambda: response_body("score", None)),
    ]  # fmt: skip
    usual = [[row[0] for row in each.select(column()).collect()] for each, column in columns]

    monkeypatch.delattr(F, "arrow_udf", raising=False)

    assert [
        [row[0] for row in each.select(column()).collect()] for each, column in columns
    ] == usual


def test_errors_on_workers_say_what_is_wrong():
    task = VectorsTask(JSONLINES, 4, one_each=True, handle_invalid="error")

    with pytest.raises(InvalidColumnError, match="int64; expected string or binary"):
        list(task(iter([pa.array([1])])))
    with pytest.raises(InvalidDataError, match=r"cannot be read \(b'{\"features\": \[1\]}'\)"):
        list(task(iter([pa.array(['{"features": [1]}'])])))
    with pytest.raises(RequestError, match="has the score inf"):
        encoded(JSONLINES, [np.array([np.inf])], np.array([False]))


def test_a_stream_of_requests_is_scored_and_answered(
    spark: SparkSession, classifier: FactorizationMachineModel, tmp_path: Path
) -> None:
    rows = np.eye(20, dtype=np.float32)[:4]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(encode_request(rows, JSONLINES))
    lines = spark.readStream.text(str(tmp_path / "in"))
    vectors = lines.withColumn("features", instance_vector("value", feature_dim=20))

    answers = classifier.transform(vectors).select(response_body().alias("value"))
    writer = answers.writeStream.format("text").trigger(availableNow=True)
    query = writer.option("checkpointLocation", str(tmp_path / "c")).start(str(tmp_path / "out"))
    query.awaitTermination()

    written = "\n".join(row[0] for row in spark.read.text(str(tmp_path / "out")).collect())
    found = decode_response(written.encode(), JSONLINES)
    assert sorted(found.scores) == pytest.approx(sorted(classifier.predict(rows)), rel=1e-6)
