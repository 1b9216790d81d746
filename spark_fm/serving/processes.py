"""What the supervisor's processes run; each imports what it needs when it runs.

Processes start with SIGNALS blocked, so that none strikes while modules are imported.
"""

from __future__ import annotations

import logging
import signal
import socket
from multiprocessing.connection import Connection
from pathlib import Path

from spark_fm.serving.settings import ServeSettings

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_worker(
    settings: ServeSettings, shared: str, listener: socket.socket, log_level: str
) -> None:
    """Answer requests until told to stop.

    Parameters
    ----------
    settings : ServeSettings
    shared : str
        The server's private folder.
    listener : socket
        Listens already, and is shared by all workers.
    log_level : str
        Of the library's log.

    Notes
    -----
    Uvicorn, when it has stopped, raises the signal that stopped it once more: it is
    ignored then. SIGHUP is the supervisor's.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    log_to_stderr(log_level)
    from spark_fm.serving.worker import serve

    serve(settings, Path(shared), listener)


def run_loader(path: str, shared: str, name: str, answer: Connection) -> None:
    """Publish a model and say how that went: ``(digest, None)`` or ``(None, error)``.

    Parameters
    ----------
    path : str
        A model folder.
    shared, name : str
        The server's private folder, and of the version in it.
    answer : Connection
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the supervisor's
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from spark_fm.errors import SparkFMError
    from spark_fm.serving.models import publish

    try:
        answer.send((publish(path, Path(shared), name), None))
    except (SparkFMError, OSError, MemoryError) as err:
        answer.send((None, " ".join(str(err).split()) or type(err).__name__))


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
