"""What a command says and returns when it fails or is interrupted."""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from spark_fm import errors

OK, FAILED, USAGE = 0, 1, 2

# Mistakes in what the caller gave: parameters, columns, data, paths.
_CALLERS = (
    errors.CheckpointError,
    errors.InvalidParamError,
    errors.InvalidColumnError,
    errors.InvalidDataError,
    errors.ModelFormatError,
)
_RAISED_ON_WORKER = re.compile(r"^(?:spark_fm\.errors\.)(\w+): (.+)$", re.MULTILINE)
_LAST_OF_TRACEBACK = re.compile(r"^((?:\w+\.)*\w+): (.+)$", re.MULTILINE)
_NOISE = re.compile(r"\s*SQLSTATE: \w+\s*$")


class UsageError(errors.SparkFMError, ValueError):
    """The command line, or a file that it names, cannot be used as given."""


def explain(err: BaseException) -> tuple[int, str]:
    """Return the exit code and the one line for an error.

    Parameters
    ----------
    err : BaseException

    Returns
    -------
    tuple of int and str
        2 for what the caller can put right in the command or the data, 130 for Ctrl-C, 143
        for SIGTERM, else 1.
    """
    if isinstance(err, KeyboardInterrupt) or was_interrupted():
        return exit_code(), "interrupted; running jobs were cancelled"
    if isinstance(err, (UsageError, *_CALLERS)):
        return USAGE, _one_line(str(err))
    if isinstance(err, errors.SparkFMError):
        return FAILED, _one_line(str(err))
    raised = raised_on_worker(err)
    if raised is not None:
        name, text = raised
        kind = getattr(errors, name, errors.SparkFMError)
        return (USAGE if issubclass(kind, _CALLERS) else FAILED), text
    return FAILED, _foreign(err)


def raised_on_worker(err: BaseException) -> tuple[str, str] | None:
    """Return class name and text of a spark_fm error that a worker raised, else None."""
    found = _RAISED_ON_WORKER.findall(str(err))
    return found[-1] if found else None


def _foreign(err: BaseException) -> str:
    """Return the line of a Spark, Java or Python error that says most."""
    text = str(err)
    if "Traceback (most recent call last)" in text:
        raised = _LAST_OF_TRACEBACK.findall(text.split("Traceback (most recent call last)")[-1])
        if raised:
            return f"a Python worker failed: {': '.join(raised[0])}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(err).__name__
    if lines[0].startswith("An error occurred while calling") and len(lines) > 1:
        lines = [lines[1].lstrip(": ")]
    if isinstance(err, OSError) or lines[0].startswith("["):
        return _NOISE.sub("", lines[0])
    return f"{type(err).__name__}: {_NOISE.sub('', lines[0])}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


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
