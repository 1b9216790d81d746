"""The real boto3, unchanged: invoke_endpoint scores, and its errors say the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from spark_fm.formats.requests import CONTENT_TYPES, JSON, JSONLINES, encode_request
from spark_fm.formats.responses import decode_response
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests.serving.conftest import WIDTH
from tests.serving.servers import Server, instances, serving

boto3 = pytest.importorskip("boto3")
botocore = pytest.importorskip("botocore")

X = np.eye(WIDTH)[:3]
CALL: dict[str, Any] = {"EndpointName": "fm-1", "ContentType": JSON, "Body": instances(X)}


def runtime(server: Server) -> Any:
    """Return a client as users make it, with no credentials or proxy of this machine's."""
    return boto3.client(
        "sagemaker-runtime", endpoint_url=server.url, region_name="us-east-1",
        aws_access_key_id="none", aws_secret_access_key="none",
        config=botocore.config.Config(proxies={}, retries={"max_attempts": 1}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def named(model: str) -> Iterator[Server]:
    with serving(Path(model), "--name", "fm-1", "--name", "other") as running:
        yield running


@pytest.mark.parametrize("name", ["fm-1", "Any-Name-2"])
@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_scores_are_the_models_by_any_name_and_in_every_format(
    server: Server, weights: FMWeights, name: str, content_type: str
) -> None:
    answer = runtime(server).invoke_endpoint(
        EndpointName=name, ContentType=content_type, Body=encode_request(X, content_type)
    )

    found = decode_response(answer["Body"].read(), answer["ContentType"])
    expected = weights.predict(CsrBatch.from_matrix(X), "logistic")
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-6)


def test_arguments_that_change_no_score_are_taken(server: Server) -> None:
    answer = runtime(server).invoke_endpoint(
        **CALL, Accept=JSONLINES, InferenceId="id-1", TargetVariant="blue",
        CustomAttributes="trace=c0ffee", InferenceComponentName="part", SessionId="NEW_SESSION",
    )  # fmt: skip

    assert answer["ContentType"] == JSONLINES
    assert answer["InvokedProductionVariant"] == "blue"
    assert answer["CustomAttributes"] == "trace=c0ffee"
    assert len(answer["Body"].read().splitlines()) == 3


def test_the_variant_has_a_name_and_there_are_no_attributes_unless_they_are_sent(
    server: Server,
) -> None:
    answer = runtime(server).invoke_endpoint(**CALL)

    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert "CustomAttributes" not in answer


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"Body": b'{"instances": [{"features": [1]}]}'}, 400, "Instance 0 has 1 dense values"),
        ({"Body": b""}, 400, "empty"),
        ({"ContentType": "text/csv"}, 415, "'text/csv' is not served"),
        ({"Accept": "application/json;q=0"}, 406, "rules out application/json"),
        ({"Body": b" " * (2**20 + 1)}, 413, "larger than 1048576 bytes"),
    ],
)  # fmt: skip
def test_an_error_is_a_model_error_with_the_reason(
    server: Server, change: dict[str, Any], status: int, words: str
) -> None:
    client = runtime(server)
    with pytest.raises(client.exceptions.ModelError, match=words) as caught:
        client.invoke_endpoint(**CALL | change)

    told = caught.value.response
    assert told["OriginalStatusCode"] == told["ResponseMetadata"]["HTTPStatusCode"] == status
    assert words in told["OriginalMessage"]


def test_only_the_names_of_the_flag_are_served(named: Server) -> None:
    client = runtime(named)
    for name in ("fm-1", "other"):
        assert client.invoke_endpoint(**CALL | {"EndpointName": name})["Body"].read()
    with pytest.raises(client.exceptions.ValidationError, match=r"'fm-2' here. Call fm-1 or other"):
        client.invoke_endpoint(**CALL | {"EndpointName": "fm-2"})


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("invoke_endpoint_with_response_stream", CALL),
        ("invoke_endpoint_async", {"EndpointName": "fm-1", "InputLocation": "s3://bucket/key"}),
    ],
)
def test_another_operation_is_told_what_to_call(
    server: Server, operation: str, arguments: dict[str, Any]
) -> None:
    client = runtime(server)
    words = rf"{operation} is not served\. Call invoke_endpoint, "
    with pytest.raises(client.exceptions.ValidationError, match=words):
        getattr(client, operation)(**arguments)


@pytest.mark.parametrize(
    "argument", ["TargetModel", "TargetContainerHostname", "EnableExplanations"]
)
def test_what_asks_for_another_model_or_answer_is_refused(server: Server, argument: str) -> None:
    client = runtime(server)
    with pytest.raises(client.exceptions.ValidationError, match=f"{argument}='b' is not served"):
        client.invoke_endpoint(**CALL, **{argument: "b"})


def test_calls_by_name_are_measured_as_invocations(server: Server) -> None:
    def count() -> float:
        page = server.get("/metrics").data.decode()
        assert "endpoints" not in page
        [found] = re.findall(r'_requests_total{[^}]*path="/invocations",status="200"} (\S+)', page)
        return float(found)

    runtime(server).invoke_endpoint(**CALL)
    before = count()
    runtime(server).invoke_endpoint(**CALL)

    assert count() == before + 1


@pytest.mark.parametrize("name", ["a?b", "a#b", "a b"])
def test_a_name_that_a_url_would_cut_is_a_name(server: Server, name: str) -> None:
    path = f"/endpoints/{quote(name, safe='')}/invocations"
    told = server.request("POST", path, body=instances(X), headers={"Content-Type": JSON})

    assert told.status == 200


def test_other_paths_below_an_endpoint_are_not_served(server: Server) -> None:
    for path in ("/endpoints", "/endpoints/fm-1", "/endpoints/fm-1/ping", "/endpoints//invocations",
                 "/endpoints/a/b/invocations"):  # fmt: skip
        assert server.request("POST", path).status == 404
    told = server.get("/endpoints/fm-1/invocations")
    assert (told.status, told.headers["Allow"]) == (405, "POST")
    assert json.loads(told.data)["message"].endswith("Use POST.")
