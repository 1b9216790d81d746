"""Errors that spark_fm raises; each is also the built-in a caller would expect."""

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "GpuNotFoundError",
    "InvalidColumnError",
    "InvalidDataError",
    "InvalidParamError",
    "ModelFormatError",
    "ModelTooLargeError",
    "RequestError",
    "ServerError",
    "SparkFMError",
    "TrainingDivergedError",
    "VersionMismatchError",
]


class SparkFMError(Exception):
    """Base of every error that spark_fm raises on purpose."""


class InvalidParamError(SparkFMError, ValueError):
    """A parameter has a value outside its legal range."""


class InvalidColumnError(SparkFMError, ValueError):
    """A column is missing, has the wrong type, or would be overwritten."""


class InvalidDataError(SparkFMError, ValueError):
    """Rows hold values that a factorization machine cannot use."""


class RequestError(InvalidDataError):
    """A request for scores holds what cannot be scored.

    Parameters
    ----------
    message : str
    instance : int, optional
        Number of the instance at fault, counted from 0; None when it is the request as a
        whole, or when its number is not known.
    """

    def __init__(self, message: str, *, instance: int | None = None) -> None:
        super().__init__(message)
        self.instance = instance


class CheckpointError(SparkFMError, ValueError):
    """A checkpoint is damaged, or of a training with other Params or data."""


class GpuNotFoundError(SparkFMError, RuntimeError):
    """A task has no GPU that it can use."""


class ModelFormatError(SparkFMError, ValueError):
    """A folder or file is not a model that this version can read."""


class ModelTooLargeError(SparkFMError, MemoryError):
    """The model does not fit the memory or transport limits of the session."""


class ServerError(SparkFMError, RuntimeError):
    """A server refuses a request for scores, or does not answer as it should.

    Parameters
    ----------
    text : str
    status : int, optional
        HTTP status of the answer; None without a usable answer.
    message : str
        The server's message.
    row : int, optional
        Number of the row at fault in what was to be scored, when the server named it.
    """

    def __init__(
        self, text: str, *, status: int | None = None, message: str = "", row: int | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.message = message
        self.row = row


class TrainingDivergedError(SparkFMError, ArithmeticError):
    """Training found no learning rate that keeps the model finite."""


class VersionMismatchError(SparkFMError, RuntimeError):
    """A worker runs another version of spark_fm than the driver."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean ...?`` with the nearest names, or nothing where none is near.

    Case, ``-`` and ``_`` do not count: what is spelt as elsewhere is near.
    """
    by_key = {re.sub(r"[-_]", "", each).lower(): each for each in known}
    key = re.sub(r"[-_]", "", name).lower()
    close = [key] if key in by_key else difflib.get_close_matches(key, by_key, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(by_key[each] for each in close)}?" if close else ""
