"""An S3 server on this machine, moto's, that lists its requests and fails where it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3:
    """A server with one empty bucket."""

    def __init__(self, url: str, requests: list[str]) -> None:
        self.url = url
        self.requests = requests  # "PUT /bucket/key?partNumber=1&..."; a copy is a "COPY"
        self.fails: Callable[[str], bool] = lambda request: False
        self.status = "403 Forbidden"  # what a client does not try again, as it does a 503

    @property
    def query(self) -> str:
        """What a URI asks for to get here."""
        return f"endpoint_override={self.url}"

    def keys(self, prefix: str = "") -> list[str]:
        """Return the names of all objects that are no marks of folders."""
        return [key for key in self._bucket() if key.startswith(prefix) and not key.endswith("/")]

    def marks(self) -> list[str]:
        """Return the names of the empty objects that stand for folders."""
        return [key for key in self._bucket() if key.endswith("/")]

    def _bucket(self) -> Any:
        from moto.backends import get_backend

        return sorted(get_backend("s3")["123456789012"]["aws"].buckets[BUCKET].keys)


@contextmanager
def s3_server() -> Iterator[S3]:
    """Serve an empty bucket inside the block."""
    from moto.backends import get_backend
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    application = DomainDispatcherApplication(create_backend_app)

    def served(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        verb = "COPY" if "HTTP_X_AMZ_COPY_SOURCE" in environ else environ["REQUEST_METHOD"]
        request = f"{verb} {environ['RAW_URI']}"
        s3.requests.append(request)
        if not s3.fails(request):
            return application(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(s3.status, [("Content-Type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>Not now.</Message></Error>"]

    server = make_server("127.0.0.1", 0, served, threaded=True, request_handler=Handler)
    s3 = S3(f"http://127.0.0.1:{server.port}", [])
    backend = get_backend("s3")["123456789012"]["aws"]
    backend.reset()
    backend.create_bucket(BUCKET, "us-east-1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
