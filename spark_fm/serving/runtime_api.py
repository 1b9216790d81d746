"""What AWS's SDKs add to a request for scores: boto3's ``invoke_endpoint``, and its errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request

from spark_fm.serving.http import shown

OPERATIONS = {  # by the end of their paths, below /endpoints/NAME
    "invocations": "invoke_endpoint",
    "invocations-response-stream": "invoke_endpoint_with_response_stream",
    "async-invocations": "invoke_endpoint_async",
}
PREFIX = re.compile("^/endpoints/[^/]+(?=/invocations$)")

_HEADER = "X-Amzn-SageMaker-"
# Arguments that ask for another model or another answer; all others change no score.
_REFUSED = {
    "Target-Model": "TargetModel",
    "Target-Container-Hostname": "TargetContainerHostname",
    "Enable-Explanations": "EnableExplanations",
}
_ERROR_TYPES = {404: "ValidationError", 503: "ServiceUnavailable"}


def refusal(request: Request, endpoints: Sequence[str]) -> str | None:
    """Return why a call is not answered, None if it is; no ``endpoints``: any name is served."""
    name = request.path_params["endpoint"]
    if endpoints and name not in endpoints:
        return f"There is no endpoint {shown(name)} here. Call {' or '.join(endpoints)}."
    operation = OPERATIONS[request.scope["path"].rsplit("/", 1)[1]]
    if operation != "invoke_endpoint":
        return f"{operation} is not served. Call invoke_endpoint, which answers at once."
    for header, argument in _REFUSED.items():
        value = request.headers.get(_HEADER + header)
        if value is not None:
            return (
                f"{argument}={shown(value)} is not served: there is one model here, which answers "
                f"with scores. Leave {argument} out."
            )
    return None


def answer_headers(sent: Headers) -> dict[str, str]:
    """Return what an answer tells: the variant, and the caller's custom attributes."""
    # Without a target, the name that SageMaker's Python SDK gives the only variant.
    variant = sent.get(_HEADER + "Target-Variant", "AllTraffic")
    headers = {"x-Amzn-Invoked-Production-Variant": variant}
    attributes = _HEADER + "Custom-Attributes"
    if attributes in sent:
        headers[attributes] = sent[attributes]
    return headers


def error_type(status: int) -> str:
    """Return which of the SDKs' errors a status is."""
    return _ERROR_TYPES.get(status, "ModelError")
