"""Count and time all requests, whatever answers them; workers."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spark_fm.serving.metrics import Metrics

PATHS = ("/invocations", "/ping", "/execution-parameters", "/health", "/metrics")


class Measured:
    """An ASGI application around another one.

    Parameters
    ----------
    app : ASGI application
    metrics : Metrics
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Any other path is one name: callers must not be able to make metrics grow.
        path = scope["path"] if scope["path"] in PATHS else "other"
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.requests.labels(path, str(status)).inc()
            if path == "/invocations":
                self._metrics.seconds.observe(time.perf_counter() - started)
