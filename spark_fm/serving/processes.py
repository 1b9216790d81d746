"""Entry points of the supervisor's processes; each imports what it needs when it runs.

Processes start with SIGNALS blocked, so that none arrives while modules are imported. The
supervisor imports this file: uvicorn must not be imported with it.
"""

from __future__ import annotations

import logging
import signal
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from spark_fm.serving.settings import SIGNALS, ServeSettings


def run_worker(
    settings: ServeSettings, shared: str, listener: socket.socket, log_level: str
) -> None:
    """Answer requests until a signal to stop; signals stay blocked until uvicorn handles them."""
    handle_signals()
    log_to_stderr(log_level)
    from spark_fm.serving.worker import serve

    serve(settings, Path(shared), listener)


def run_loader(
    path: str, predictor_type: str | None, shared: str, name: str, result: Connection
) -> None:
    """Publish a model and send the result: ``(digest, None)`` or ``(None, error)``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the supervisor
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from spark_fm.errors import SparkFMError
    from spark_fm.serving.models import publish

    try:
        digest = publish(path, Path(shared), name, predictor_type=predictor_type)
        result.send((digest, None))
    except (SparkFMError, OSError, MemoryError) as err:
        result.send((None, " ".join(str(err).split()) or type(err).__name__))


def handle_signals() -> None:
    """Set what a worker's signals do before uvicorn's handlers stand, and after.

    Uvicorn, when it has stopped, raises the signal that stopped it once more: it must do
    nothing then. Setting SIG_IGN would drop a pending signal, and a worker that is asked to
    stop while it starts would keep running. SIGHUP is for the supervisor.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Ignore a signal that has been handled."""


def log_to_stderr(level: str) -> None:
    """Send the library's log, and uvicorn's errors, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] %(message)s", "%H:%M:%S"))
    # Uvicorn warns of each malformed request: callers must not be able to fill a disk.
    levels = {"spark_fm": level.upper(), "uvicorn.error": "ERROR", "uvicorn.access": "INFO"}
    for name, least in levels.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False
