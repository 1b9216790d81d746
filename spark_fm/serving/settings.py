"""Settings of a server, and the folder by which supervisor and workers share facts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from spark_fm.errors import InvalidParamError

MIB = 2**20
DEFAULT_PORT = 8080
DEFAULT_HELD_MB = 96
CONTAINER_MODEL = "/opt/ml/model"
MAX_PRODUCT_MB = 100  # SageMaker's bound of payload times concurrent transforms
STRATEGIES = ("MultiRecord", "SingleRecord")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Address, limits and times of a server.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 takes a free one.
    workers : int
        Processes that score, >= 1. They share one copy of the model.
    max_payload_mb : int
        Largest request body in MiB, 1 to 100; a larger one is answered 413.
    max_requests : int
        Requests a worker holds at once, >= 1; further ones are answered 503.
    max_held_mb : int
        MiB of request bodies that a worker holds at once, at least ``max_payload_mb``;
        what goes beyond is answered 503. 0: 96, or two of the largest if that is more.
    threads : int
        Threads of a worker for the bodies that are too large to decode at once, >= 1.
    concurrent_transforms : int
        What ``/execution-parameters`` asks for; 0: two a worker, within SageMaker's bound.
    batch_strategy : {"MultiRecord", "SingleRecord"}
        What ``/execution-parameters`` says.
    is_batch : bool
        Serving a batch transform: recordIO requests without Accept get JSON lines.
    head_seconds, body_seconds, idle_seconds : float
        For a request's head, for its body, and between requests of a connection; > 0.
    grace_seconds : float
        For requests in flight when the server stops; > 0.
    reload_seconds : float
        Between two looks at the model's path; 0: only on SIGHUP.
    access_log : bool
        A line for each request.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    workers: int = 1
    max_payload_mb: int = 6
    max_requests: int = 512
    max_held_mb: int = 0
    threads: int = 2
    concurrent_transforms: int = 0
    batch_strategy: str = "MultiRecord"
    is_batch: bool = False
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0  # longer than the 60 s of usual load balancers
    grace_seconds: float = 30.0
    reload_seconds: float = 2.0
    access_log: bool = False

    def __post_init__(self) -> None:
        """Check the ranges, and hold two of the largest bodies when nothing else is said."""
        if not self.max_held_mb:
            held = max(DEFAULT_HELD_MB, 2 * self.max_payload_mb)
            object.__setattr__(self, "max_held_mb", held)
        ranges: dict[str, tuple[float, float]] = {
            "port": (0, 65535), "workers": (1, 1024), "max_payload_mb": (1, MAX_PRODUCT_MB),
            "max_requests": (1, 2**20), "max_held_mb": (self.max_payload_mb, 2**20),
            "threads": (1, 1024), "concurrent_transforms": (0, 1000), "reload_seconds": (0, 86400),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidParamError(f"{name}={value!r} is outside {low:g} to {high:g}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _TIMES and not 0 < value <= 86400:
                raise InvalidParamError(
                    f"{field.name}={value!r} is outside 0 to 86400, 0 excluded."
                )
        if self.batch_strategy not in STRATEGIES:
            raise InvalidParamError(
                f"batch_strategy={self.batch_strategy!r} is neither of {', '.join(STRATEGIES)}."
            )

    @property
    def max_payload_bytes(self) -> int:
        """Largest request body in bytes."""
        return self.max_payload_mb * MIB

    @property
    def execution_parameters(self) -> dict[str, object]:
        """What ``GET /execution-parameters`` answers."""
        bound = max(1, MAX_PRODUCT_MB // self.max_payload_mb)
        return {
            "MaxConcurrentTransforms": self.concurrent_transforms or min(2 * self.workers, bound),
            "BatchStrategy": self.batch_strategy,
            "MaxPayloadInMB": self.max_payload_mb,
        }


_TIMES = ("head_seconds", "body_seconds", "idle_seconds", "grace_seconds")


def container_values(environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Return the settings that SageMaker's environment variables name.

    Parameters
    ----------
    environment : mapping of str to str

    Returns
    -------
    dict
        Arguments of `ServeSettings`.

    Raises
    ------
    InvalidParamError
        For a number that is none.

    Notes
    -----
    A payload of 0 MB means chunked streaming, which SageMaker's built-in algorithms do
    not offer either: the default limit stays.
    """
    found: dict[str, object] = {}
    for variable, name in _VARIABLES.items():
        text = environment.get(variable, "").strip()
        if not text:
            continue
        if not text.isdecimal():
            raise InvalidParamError(
                f"The environment variable {variable}={text!r} is not a whole number."
            )
        if int(text) or variable not in _ZERO_IS_DEFAULT:
            found[name] = int(text)
    strategies = {name.lower(): name for name in STRATEGIES}
    strategy = environment.get("SAGEMAKER_BATCH_STRATEGY", "").replace("_", "").lower()
    if strategy:
        found["batch_strategy"] = strategies.get(strategy, strategy)
    if environment.get("SAGEMAKER_BATCH", "").strip().lower() in ("true", "1"):
        found["is_batch"] = True
    return found


_VARIABLES = {
    "SAGEMAKER_BIND_TO_PORT": "port",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": "max_payload_mb",
    "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "concurrent_transforms",
}
_ZERO_IS_DEFAULT = ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS")


METRICS = "metrics"  # folder of prometheus_client
SERVING = "serving"  # folder: which model each worker serves, a file each
STATUS = "status.json"  # what the supervisor counts
CURRENT = "current"  # names the version to serve


def current_name(shared: Path) -> str | None:
    """Return the name of the version to serve, None before there is one."""
    try:
        return (shared / CURRENT).read_text()
    except FileNotFoundError:
        return None


def version_name(number: int) -> str:
    """Return the folder's name of the so manieth version; names sort by number."""
    return f"version-{number:09d}"


def versions(shared: Path) -> list[Path]:
    """Return the folders of all versions, oldest first."""
    return sorted(shared.glob("version-*"))


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that readers see the old text or the new."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
