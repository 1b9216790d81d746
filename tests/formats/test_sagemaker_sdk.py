"""Files, bodies and batch transforms of SageMaker's Python SDK, recorded with its version.

tests/golden/sagemaker_sdk/record.py recorded them, in an environment with that SDK.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.cli.main import main
from spark_fm.formats.requests import JSON, JSONLINES, RECORDIO_PROTOBUF, decode_request
from spark_fm.formats.responses import decode_response, encode_response
from spark_fm.loaded import load
from spark_fm.recordio import read_records, write_records
from tests.formats.models import saved_model

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sagemaker_sdk"
FACTS = json.loads((GOLDEN / "facts.json").read_text())
DENSE = np.array([[0.5, -1.0, 0.0, 2.25], [1e-3, 3.0, -0.125, 0.0], [0.0, 0.0, 0.0, 0.0]])
SCORE = re.compile(r'(?<="score": )[\d.e-]+')
LABELS = np.array([1.0, 0.0, 1.0])


def numbers(line: str) -> list[float]:
    return [float(score) for score in SCORE.findall(line)]


@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_training_file_of_the_sdk_is_read(form: str, kind: str) -> None:
    X, y = read_records(GOLDEN / f"{form}-{kind}.pbr")

    assert X.toarray() == pytest.approx((DENSE * 8).astype(kind))
    assert y.tolist() == LABELS.tolist()


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_training_file_is_written_byte_for_byte_as_the_sdk_does(
    form: str, tmp_path: Path
) -> None:
    X = (DENSE * 8).astype(np.float32)

    write_records(tmp_path / "rows.pbr", X if form == "dense" else sp.csr_matrix(X), LABELS)

    assert (tmp_path / "rows.pbr").read_bytes() == (GOLDEN / f"{form}-float32.pbr").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("request.pbr", RECORDIO_PROTOBUF), ("request.json", JSON), ("request.jsonl", JSONLINES)],
)
def test_a_request_of_the_sdk_s_serializers_is_read(name: str, kind: str) -> None:
    batch = decode_request((GOLDEN / name).read_bytes(), kind, feature_dim=4)

    found = sp.csr_matrix((batch.values, batch.indices, batch.indptr), shape=DENSE.shape)
    assert found.toarray() == pytest.approx(DENSE)


def test_the_sdk_s_deserializer_read_the_scores_that_the_model_has(tmp_path: Path) -> None:
    body = (GOLDEN / "response.pbr").read_bytes()
    answer = decode_response(body, RECORDIO_PROTOBUF)
    scores = load(saved_model(tmp_path / "model")).predict(DENSE)

    assert answer.scores.tolist() == pytest.approx(scores.tolist(), abs=1e-6)
    assert encode_response(answer.scores, answer.labels, RECORDIO_PROTOBUF) == body
    assert FACTS["response"]["score"] == [[score] for score in answer.scores.tolist()]
    assert FACTS["response"]["predicted_label"] == [[label] for label in answer.labels.tolist()]


@pytest.mark.parametrize("name", FACTS["transforms"])
def test_a_batch_transform_writes_what_the_sdk_s_local_job_wrote(name: str, tmp_path: Path) -> None:
    how = FACTS["transforms"][name]
    words = ["--content-type", how["type"], "--split-type", how["split"]]

    done = main(
        ["score", "--model", saved_model(tmp_path / "model"), "--input", str(GOLDEN / name),
         *words, "--assemble-with", how["assemble"], "--output", str(tmp_path / "out")]
    )  # fmt: skip

    assert done == 0
    ours, theirs = (
        (folder / f"{name}.out").read_text().split("\n") for folder in (tmp_path / "out", GOLDEN)
    )
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert SCORE.sub("", our) == SCORE.sub("", their)
        assert numbers(our) == pytest.approx(numbers(their), abs=1e-6)
