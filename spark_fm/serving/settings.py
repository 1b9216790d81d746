"""Settings of a server, and the private folder that its supervisor and workers share."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from spark_fm.errors import InvalidParamError

MIB = 2**20
DEFAULT_PORT = 8080
DEFAULT_HELD_MB = 96
CONTAINER_MODEL = "/opt/ml/model"
MAX_PRODUCT_MB = 100  # SageMaker's limit on payload times concurrent transforms
STRATEGIES = ("MultiRecord", "SingleRecord")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that the supervisor handles


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Address, limits and times of a server."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0: a free one
    endpoints: Sequence[str] = ()  # names that AWS's SDKs may call it by; none: any
    workers: int = 1  # processes that score; they share one copy of the model
    max_payload_mb: int = 6  # MiB, 1 to 100; a larger request body is answered 413
    max_requests: int = 512  # that a worker holds at once; further ones are answered 503
    # MiB of request bodies that a worker holds at once, at least max_payload_mb; beyond that
    # it answers 503. 0: 96, or two of the largest if that is more.
    max_held_mb: int = 0
    threads: int = 2  # of a worker, for bodies too large to decode in the event loop
    # What /execution-parameters asks for; 0: two a worker, within SageMaker's limit.
    concurrent_transforms: int = 0
    batch_strategy: str = "MultiRecord"  # one of STRATEGIES
    is_batch: bool = False  # serving a batch transform: recordIO without Accept gets JSON lines
    head_seconds: float = 10.0  # for a request's head to arrive
    body_seconds: float = 30.0  # for its body
    idle_seconds: float = 75.0  # between requests; longer than the 60 s of usual load balancers
    grace_seconds: float = 30.0  # for requests in flight when the server stops
    reload_seconds: float = 2.0  # between two checks for a new model; 0: only on SIGHUP
    access_log: bool = False  # a line for each request
    predictor_type: str | None = None  # of an artifact of SageMaker that does not contain it

    def __post_init__(self) -> None:
        """Check the ranges; by default a worker holds two of the largest bodies."""
        if not self.max_held_mb:
            max_held_mb = max(DEFAULT_HELD_MB, 2 * self.max_payload_mb)
            object.__setattr__(self, "max_held_mb", max_held_mb)
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
        for name in self.endpoints:
            if not _ENDPOINT_NAME.fullmatch(name):
                raise InvalidParamError(
                    f"{name!r} is no name of endpoints: SageMaker's have up to 63 letters and "
                    "digits, with hyphens between them. Choose another --name."
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


_ENDPOINT_NAME = re.compile("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_TIMES = ("head_seconds", "body_seconds", "idle_seconds", "grace_seconds")


def container_values(environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Return the arguments of `ServeSettings` that SageMaker's environment variables give.

    A payload of 0 MB means chunked streaming, which SageMaker's built-in algorithms do
    not offer either: the default limit stays.
    """
    values: dict[str, object] = {}
    for variable, name in _VARIABLES.items():
        text = environment.get(variable, "").strip()
        if not text:
            continue
        if not text.isdecimal():
            raise InvalidParamError(
                f"The environment variable {variable}={text!r} is not a whole number."
            )
        if int(text) or variable not in _ZERO_IS_DEFAULT:
            values[name] = int(text)
    strategies = {name.lower(): name for name in STRATEGIES}
    strategy = environment.get("SAGEMAKER_BATCH_STRATEGY", "").replace("_", "").lower()
    if strategy:
        values["batch_strategy"] = strategies.get(strategy, strategy)
    if environment.get("SAGEMAKER_BATCH", "").strip().lower() in ("true", "1"):
        values["is_batch"] = True
    return values


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
    """Return the folder's name of a version; names sort by number."""
    return f"version-{number:09d}"


def versions(shared: Path) -> list[Path]:
    """Return the folders of all versions, oldest first."""
    return sorted(shared.glob("version-*"))


def write_atomically(path: Path, text: str) -> None:
    """Write a small file; readers see the old text or the new."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
