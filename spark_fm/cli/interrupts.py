"""Ctrl-C ends a command the same way wherever it strikes; driver only."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_seen = threading.Event()


def was_interrupted() -> bool:
    """Tell whether an interruption arrived since the last ``interruptible`` began."""
    return _seen.is_set()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT into one KeyboardInterrupt inside the block.

    PySpark installs a handler of its own that calls the JVM. When the main thread is
    waiting for the JVM at that moment, as it mostly is, that call fails and its error
    takes the place of the interruption. Jobs are cancelled by whoever started them.
    """
    _seen.clear()
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        logging.disable(logging.NOTSET)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _seen.is_set():
        return  # once is enough: let the clean-up run
    _seen.set()
    # What breaks from here on is a consequence, py4j tells the root logger of it.
    logging.disable(logging.ERROR)
    raise KeyboardInterrupt
