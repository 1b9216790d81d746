"""Errors that spark_fm raises; each is also the built-in a caller would expect."""

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
