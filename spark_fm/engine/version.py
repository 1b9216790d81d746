"""Refuse to run a task with another version of the package than the driver's."""

from __future__ import annotations

import socket

from spark_fm._version import __version__
from spark_fm.errors import VersionMismatchError


def check_version(driver_version: str) -> None:
    """Raise VersionMismatchError on a worker whose spark_fm differs from the driver's."""
    if driver_version != __version__:
        raise VersionMismatchError(
            f"The driver runs spark_fm {driver_version}, the worker on {socket.gethostname()} has "
            f"spark_fm {__version__}. Install the same version everywhere, or ship the wheel with "
            "the job (see docs/deploy.md)."
        )
