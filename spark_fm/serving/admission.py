"""How much a worker holds at once: requests, and bytes of their bodies; event loop only."""

from __future__ import annotations

from types import TracebackType

RETRY_AFTER_SECONDS = 1


class OverloadedError(RuntimeError):
    """The worker holds all that it may: 503, come again."""


class Admission:
    """Count the requests and body bytes that a worker holds.

    Parameters
    ----------
    max_requests, max_bytes : int
        The most of either at once.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def enter(self) -> Ticket:
        """Return a ticket for one request, to be used in ``with``.

        Raises
        ------
        OverloadedError
            When ``max_requests`` are held.
        """
        if self.requests >= self.max_requests:
            raise OverloadedError(f"This server holds {self.requests} requests already. Try again.")
        return Ticket(self)


class Ticket:
    """One request's share; given back when its block ends."""

    __slots__ = ("_admission", "_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        admission.requests += 1

    def hold(self, n_bytes: int) -> None:
        """Count bytes of a body as they arrive.

        Raises
        ------
        OverloadedError
            When the bodies of all requests would exceed ``max_bytes``.
        """
        admission = self._admission
        if admission.bytes + n_bytes > admission.max_bytes:
            raise OverloadedError(
                f"This server holds request bodies of {admission.bytes} bytes already. Try again."
            )
        admission.bytes += n_bytes
        self._bytes += n_bytes

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission.requests -= 1
        self._admission.bytes -= self._bytes
