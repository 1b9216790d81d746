"""The client: scores of NumPy and SciPy rows from a server."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, InvalidParamError, ServerError
from spark_fm.formats.body_kinds import RECORDIO_PROTOBUF
from spark_fm.formats.content_types import content_type_of
from spark_fm.formats.requests import encode_request
from spark_fm.formats.responses import Predictions, decode_response
from spark_fm.formats.vectors import rows_of

if TYPE_CHECKING:
    import urllib3

PATH = "/invocations"
MAX_PAYLOAD_BYTES = 5 * 2**20  # below all of SageMaker's limits
MAX_BACKOFF_SECONDS = 10.0
FIRST_ROWS = 256  # rows of the first request, which shows how long a row is
MAX_MESSAGE = 500  # characters of a server's message
RETRIED = (429, 502, 503, 504)  # not answered, but a retry may be


class Predictor:
    """Scores rows on a server of this library, or on one compatible with SageMaker's.

    Parameters
    ----------
    url : str
        Of the server, such as ``http://localhost:8080``; ``/invocations`` is appended
        unless the URL has a path.
    content_type : str
        Format of the requests: ``application/json``, ``application/jsonlines`` or
        ``application/x-recordio-protobuf``.
    accept : str, optional
        Format of the answers; default: that of the requests.
    timeout : float
        Seconds to wait for a connection, and for an answer.
    retries : int
        How often a request is sent again when the server is overloaded (429, 502, 503,
        504) or the connection fails.
    backoff : float
        Seconds before the second retry, doubled each time up to 10; the server's
        Retry-After counts instead, up to 10 as well.
    max_payload_bytes : int
        Longest request: more rows are sent in several.
    headers : dict of str to str, optional
        Sent with each request, for example an authorization.

    Notes
    -----
    Safe in threads; connections are kept. Scoring changes nothing on a server, so that
    sending a request twice does no harm.

    Examples
    --------
    >>> from spark_fm.serving import Predictor
    >>> predictor = Predictor("http://localhost:8080")
    >>> predictor.url
    'http://localhost:8080/invocations'
    """

    def __init__(
        self, url: str, *, content_type: str = RECORDIO_PROTOBUF, accept: str | None = None,
        timeout: float = 60.0, retries: int = 5, backoff: float = 0.1,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES, headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        try:
            import urllib3
        except ImportError as err:
            raise ImportError(
                "Predictor needs urllib3: install the [serve] extra, for example with "
                "pip install 'spark-fm[serve]'."
            ) from err
        for name, value, low in (
            ("timeout", timeout, 0), ("backoff", backoff, -1), ("retries", retries, -1),
            ("max_payload_bytes", max_payload_bytes, 0),
        ):  # fmt: skip
            if not low < value < math.inf:
                raise InvalidParamError(f"{name}={value!r}; expected a number above {low}.")
        self.url = _full_url(url)
        self.content_type = content_type_of(content_type).name
        self.accept = content_type_of(accept or content_type, "accept").name
        self.max_payload_bytes = max_payload_bytes
        self._headers = (headers or {}) | {
            "Content-Type": self.content_type, "Accept": self.accept,
        }  # fmt: skip
        self._pool = urllib3.PoolManager(
            maxsize=8, timeout=urllib3.Timeout(timeout), retries=_retries(retries, backoff)
        )

    def predict(self, X: Any) -> NDArray[np.float32]:
        """Return the score of each row.

        Parameters
        ----------
        X : array_like or SciPy sparse matrix or array of shape (n_rows, n_features)
            As wide as the model; one dimension is one row. Sparse rows travel, and
            cost the server, their non-zeros only.

        Returns
        -------
        ndarray of shape (n_rows,), float32
            P(label = 1) of a classifier, the value of a regressor.

        Raises
        ------
        ServerError
            When the server refuses the rows, or does not answer; ``status`` says how.
        InvalidDataError
            For rows that cannot be sent: not finite, masked, no table of numbers, or one
            longer than a request may be.
        """
        return self.predictions(X).scores

    def predictions(self, X: Any) -> Predictions:
        """Return ``scores`` and, of a classifier, ``labels`` of rows; as `predict`."""
        rows = rows_of(X)
        answers: list[Predictions] = []
        n_sent = 0
        for body, n_rows in self._requests(rows):
            answers.append(self._send(body, n_rows, n_sent))
            n_sent += n_rows
        if not answers:
            return Predictions(np.empty(0, np.float32), None)
        labels = [answer.labels for answer in answers if answer.labels is not None]
        if labels and len(labels) < len(answers):
            raise ServerError(
                f"{self.url} gave labels for some requests only: its model changed in between. "
                "Send the rows again."
            )
        return Predictions(
            np.concatenate([answer.scores for answer in answers]),
            np.concatenate(labels) if labels else None,
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _requests(self, rows: Any) -> Iterator[tuple[bytes, int]]:
        """Yield bodies within the limit and their numbers of rows."""
        start, max_rows = 0, FIRST_ROWS
        while start < rows.shape[0]:
            body = encode_request(rows[start : start + max_rows], self.content_type)
            n_rows = min(max_rows, rows.shape[0] - start)
            if len(body) > self.max_payload_bytes:
                if n_rows == 1:
                    raise InvalidDataError(
                        f"Row {start} takes {len(body)} bytes as {self.content_type}, more than "
                        f"max_payload_bytes={self.max_payload_bytes}. Raise both that and the "
                        "server's limit, send it sparse, or in another format."
                    )
                max_rows = max(1, n_rows // 2)
                continue
            yield body, n_rows
            start += n_rows
            fitting = int(n_rows * 0.9 * self.max_payload_bytes / len(body))
            max_rows = max(1, min(fitting, 4 * n_rows))  # the next rows may be longer

    def _send(self, body: bytes, n_rows: int, first_row: int) -> Predictions:
        """Return the answer to one request, whose rows start at ``first_row`` of X."""
        import urllib3

        try:
            response = self._pool.request(
                "POST", self.url, body=body, headers=self._headers, redirect=False
            )
        except urllib3.exceptions.HTTPError as err:
            raise ServerError(f"{self.url} does not answer: {_cause(err)}.") from err
        if response.status != 200:
            message, instance = _message(response)
            row = None if instance is None else first_row + instance
            where = "" if row is None else f" (row {row} of X)"
            raise ServerError(
                f"{self.url} answered {response.status}{where}: {message}",
                status=response.status, message=message, row=row,
            )  # fmt: skip
        content_type = response.headers.get("Content-Type", self.accept)
        try:
            predictions = decode_response(response.data, content_type)
        except (InvalidDataError, InvalidParamError) as err:
            raise ServerError(f"{self.url} gave an answer that cannot be read: {err}") from err
        if len(predictions.scores) != n_rows:
            raise ServerError(
                f"{self.url} gave {len(predictions.scores)} scores for {n_rows} rows. It is no "
                "server of factorization machines."
            )
        return predictions


def _full_url(url: str) -> str:
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parts = parse_url(url)
    except LocationParseError as err:
        raise InvalidParamError(f"url={url!r} is no URL: {err}.") from err
    if parts.scheme not in ("http", "https") or not parts.host:
        raise InvalidParamError(
            f"url={url!r} is no URL of a server; expected http://host:port or https://host."
        )
    return parts._replace(path=PATH).url if parts.path in (None, "", "/") else parts.url


def _retries(retries: int, backoff: float) -> urllib3.Retry:
    """Return which answers are retried, when, and for how long at most."""
    import urllib3

    class BoundedRetry(urllib3.Retry):
        """Waits no longer than it would by itself, whatever the server asks for."""

        def get_retry_after(self, response: Any) -> float | None:
            seconds = super().get_retry_after(response)
            return None if seconds is None else min(seconds, MAX_BACKOFF_SECONDS)

    return BoundedRetry(
        total=retries, backoff_factor=backoff, backoff_max=MAX_BACKOFF_SECONDS,
        backoff_jitter=backoff, status_forcelist=RETRIED, allowed_methods=None,
        raise_on_status=False,
    )  # fmt: skip


def _message(response: Any) -> tuple[str, int | None]:
    """Return the error message of an answer, and the instance at fault."""
    text = response.data.decode("utf-8", "replace").strip()
    try:
        content = response.json()
    except ValueError:
        return text[:MAX_MESSAGE] or "no message", None
    if not isinstance(content, dict):
        return text[:MAX_MESSAGE], None
    instance = content.get("instance")
    names: Sequence[str] = ("error", "message", "Message", "detail")
    message = next((str(content[name]) for name in names if name in content), text)
    return message[:MAX_MESSAGE], instance if isinstance(instance, int) else None


def _cause(err: BaseException) -> str:
    """Return the innermost reason of an error of urllib3."""
    reason = getattr(err, "reason", None)
    return _cause(reason) if isinstance(reason, BaseException) else str(err)
