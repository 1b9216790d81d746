"""Ctrl-C and SIGTERM end a command the same way wherever they strike; driver only."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Who stops a process politely: a terminal, or a scheduler (Kubernetes, YARN, SageMaker).
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interruption:
    """What arrived, and whether it may take effect now."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_held_back = False


_seen = _Interruption()


def was_interrupted() -> bool:
    """Tell whether an interruption arrived in this command."""
    return _seen.signal is not None


def forget() -> None:
    """Let the next command of this process begin as if none had been interrupted."""
    _seen.signal = None


def exit_code() -> int:
    """Return what a shell expects of a process that this interruption ended."""
    return 128 + (_seen.signal or signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT or SIGTERM into one KeyboardInterrupt inside the block.

    PySpark installs a handler of its own that calls the JVM. When the main thread is
    waiting for the JVM at that moment, as it mostly is, that call fails and its error
    takes the place of the interruption. Jobs are cancelled by whoever started them.
    """
    forget()
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)


@contextmanager
def held_back() -> Iterator[None]:
    """Let an interruption wait until the block is left."""
    _seen.is_held_back = True
    try:
        yield
    finally:
        _seen.is_held_back = False
    if was_interrupted():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    if was_interrupted():
        return  # once is enough: let the clean-up run
    _seen.signal = number
    if _seen.is_held_back:
        return
    # What breaks from here on is a consequence, py4j tells the root logger of it.
    logging.disable(logging.ERROR)
    raise KeyboardInterrupt
