"""The HTTP interface of one worker: routes, errors and the metrics of each request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spark_fm._version import __version__
from spark_fm.errors import RequestError
from spark_fm.formats.body_kinds import JSON
from spark_fm.formats.content_types import REGISTRY
from spark_fm.formats.requests import decode_request
from spark_fm.formats.responses import encode_response
from spark_fm.learner.losses import LOSSES
from spark_fm.serving.batching import (
    RETRY_AFTER_SECONDS,
    Admission,
    Batcher,
    Lease,
    OverloadedError,
)
from spark_fm.serving.http import (
    NotAcceptableError,
    UnsupportedTypeError,
    request_format,
    response_format,
    shown,
)
from spark_fm.serving.metrics import CONTENT_TYPE, Metrics
from spark_fm.serving.models import ServedModel
from spark_fm.serving.runtime_api import (
    OPERATIONS,
    PREFIX,
    answer_headers,
    error_type,
    refusal,
)
from spark_fm.serving.settings import ServeSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

INLINE_BYTES = 2**14  # largest body decoded in the event loop: some 100 µs
INLINE_ROWS = 256  # largest answer encoded there


@dataclass(eq=False)
class Service:
    """What the endpoints of one worker share; ``model`` is replaced on a reload."""

    settings: ServeSettings
    metrics: Metrics
    codecs: Executor  # threads for bodies and answers too large for the event loop
    batcher: Batcher
    admission: Admission
    model: ServedModel | None = None  # None until the first one is loaded


def make_app(service: Service) -> MetricsMiddleware:
    """Return the ASGI application of a worker."""
    endpoints = _Endpoints(service)
    app = Starlette(
        routes=[
            Route("/", endpoints.root, methods=["GET"]),
            Route("/ping", endpoints.ping, methods=["GET"]),
            Route("/invocations", endpoints.invocations, methods=["POST"]),
            *(
                Route(f"/endpoints/{{endpoint}}/{end}", endpoints.endpoint, methods=["POST"])
                for end in OPERATIONS
            ),
            Route("/execution-parameters", endpoints.execution_parameters, methods=["GET"]),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _on_http_error, Exception: _on_server_error},
    )
    app.router.redirect_slashes = False  # a redirect is no answer to a POST
    return MetricsMiddleware(app, service.metrics)


class MetricsMiddleware:
    """Counts and times the requests of an ASGI application."""

    PATHS = ("/invocations", "/ping", "/execution-parameters", "/health", "/metrics")

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Any other path has one label: callers must not be able to make the metrics grow.
        path = PREFIX.sub("", scope["path"])
        path = path if path in self.PATHS else "other"
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.requests.labels(path, str(status)).inc()
            if path == "/invocations":
                self._metrics.seconds.observe(time.perf_counter() - started)


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def root(self, request: Request) -> Response:
        """Show a person the model, and a request to copy."""
        model = self._service.model
        if model is None:
            return PlainTextResponse("The model is still being loaded.\n", status_code=503)
        kind = LOSSES[model.loss].predictor_type.replace("_", " ")
        address = shlex.quote(str(request.url_for("invocations")))
        body = shlex.quote(json.dumps(model.example_request()))
        return PlainTextResponse(
            f"spark_fm {__version__} serves a {kind} of {model.weights.feature_dim} features and "
            f"{model.weights.k} factors. Scores are at POST /invocations:\n\n"
            f"curl {address} -H 'Content-Type: {JSON}' -d {body}\n\n"
            "GET /health describes the model, GET /metrics the requests.\n"
        )

    async def ping(self, request: Request) -> Response:
        """Answer with an empty body: 200 once a model is loaded, 503 before."""
        return Response(status_code=503 if self._service.model is None else 200)

    async def execution_parameters(self, request: Request) -> Response:
        """Answer a batch transform that asks what to send."""
        return JSONResponse(self._service.settings.execution_parameters)

    async def health(self, request: Request) -> Response:
        """Describe what is served, for people and probes."""
        model = self._service.model
        content = {
            "status": "loading" if model is None else "ok",
            "worker": os.getpid(),
            "requests": self._service.admission.requests,
            "model": None if model is None else model.describe(),
        }
        return JSONResponse(content, status_code=503 if model is None else 200)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics of all workers."""
        loop = asyncio.get_running_loop()
        page = await loop.run_in_executor(self._service.codecs, self._service.metrics.page)
        return Response(page, media_type=CONTENT_TYPE)

    async def endpoint(self, request: Request) -> Response:
        """Score the instances of an AWS SDK's call, which names an endpoint."""
        refused = refusal(request, self._service.settings.endpoints)
        if refused is not None:
            return error_response(request, 404, refused)
        answer = await self.invocations(request)
        answer.headers.update(answer_headers(request.headers))
        return answer

    async def invocations(self, request: Request) -> Response:
        """Score the instances of a request."""
        try:
            with self._service.admission.enter() as lease:
                return await self._score(request, lease)
        except _Refusal as err:
            return error_response(request, err.status, err.message, instance=err.instance)
        except UnsupportedTypeError as err:
            return error_response(request, 415, str(err))
        except NotAcceptableError as err:
            return error_response(request, 406, str(err))
        except OverloadedError as err:
            return error_response(request, 503, str(err))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; it is counted

    async def _score(self, request: Request, lease: Lease) -> Response:
        model = self._service.model
        if model is None:
            raise _Refusal(503, "The model is still being loaded. Try again.")
        content_type, accept = negotiate(request.headers, self._service.settings)
        body = await self._read_body(request, lease)
        try:
            batch = await self._run(
                lambda: decode_request(body, content_type, feature_dim=model.weights.feature_dim),
                inline=len(body) <= INLINE_BYTES,
            )
            scores = await self._service.batcher.score(model, batch)
            payload = await self._run(
                lambda: encode_response(scores, model.labels(scores), accept),
                inline=len(scores) <= INLINE_ROWS,
            )
        except RequestError as err:
            raise _Refusal(400, str(err), err.instance) from err
        return Response(payload, media_type=accept)

    async def _read_body(self, request: Request, lease: Lease) -> bytes:
        """Return the body; its size is checked as it arrives, and its time is limited."""
        settings = self._service.settings
        limit = settings.max_payload_bytes
        declared = request.headers.get("content-length", "").lstrip("0")
        # Python refuses to parse very long numbers.
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            raise _too_large(settings, f"of {declared[:50]} bytes")
        body = bytearray()  # not a list of chunks: they may be of one byte each
        try:
            with anyio.fail_after(settings.body_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limit:
                        raise _too_large(settings, "that is being sent")
                    lease.hold(len(chunk))
                    body += chunk
        except TimeoutError as err:
            raise _Refusal(
                408, f"The body did not arrive within {settings.body_seconds:g} seconds."
            ) from err
        self._service.metrics.payload_bytes.inc(len(body))
        return bytes(body)

    async def _run(self, work: Callable[[], T], *, inline: bool) -> T:
        """Do small work in the event loop, other work in a thread."""
        if inline:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._service.codecs, work)


def negotiate(headers: Headers, settings: ServeSettings) -> tuple[str, str]:
    """Return the content types of a request and of its answer, or raise what 415 or 406 say."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedTypeError(
            f"Content-Encoding {shown(encoding)} is not read. Send the body as it is."
        )
    content_type = request_format(headers.get("content-type"))
    default = content_type
    if settings.is_batch:
        default = REGISTRY[content_type].batch_accept or content_type
    accepts = headers.getlist("accept")
    return content_type, response_format(", ".join(accepts) if accepts else None, default)


class _Refusal(Exception):  # noqa: N818 - an answer, not an error of the server
    """An answer other than scores."""

    def __init__(self, status: int, message: str, instance: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.instance = instance


def _too_large(settings: ServeSettings, size: str) -> _Refusal:
    return _Refusal(
        413,
        f"The body {size} is larger than {settings.max_payload_bytes} bytes "
        f"({settings.max_payload_mb} MB). Send fewer instances a request.",
    )


def error_response(
    request: Request, status: int, message: str, *, instance: int | None = None
) -> Response:
    """Return an error as JSON: ``status``, ``error`` and, for one at fault, ``instance``.

    AWS's SDKs show ``message``, and raise the error of theirs that the header names.
    """
    content: dict[str, object] = {"status": status, "error": message, "message": message}
    if instance is not None:
        content["instance"] = instance
    headers = {}
    if "endpoint" in request.path_params:
        content |= {"OriginalStatusCode": status, "OriginalMessage": message}
        headers["x-amzn-ErrorType"] = error_type(status)
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if status == 408:
        headers["Connection"] = "close"  # what is missing of the body is not awaited
    return JSONResponse(content, status_code=status, headers=headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer a path or method that is not served."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{error.detail}."
    if error.status_code == 404:
        message = f"There is no {shown(request.url.path)} here. Scores are at POST /invocations."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{shown(request.method)} is not for {request.url.path}. Use {allowed}."
    answer = error_response(request, error.status_code, message)
    answer.headers.update(error.headers or {})
    return answer


async def _on_server_error(request: Request, error: Exception) -> Response:
    """Answer a bug of the server; Starlette raises it again, for the log."""
    return error_response(request, 500, "The server failed on this request; its log says why.")
