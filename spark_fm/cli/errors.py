"""Failures and interruptions of a command: its one line of error, and its exit code."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from spark_fm import errors
from spark_fm.cli.wording import worded

OK, FAILED, USAGE = 0, 1, 2

# Mistakes in the caller's parameters, columns, data or paths.
_CALLER_ERRORS = (
    errors.CheckpointError,
    errors.InvalidParamError,
    errors.InvalidColumnError,
    errors.InvalidDataError,
    errors.ModelFormatError,
)
_RAISED_ON_WORKER = re.compile(r"^(?:spark_fm\.errors\.)(\w+): (.+)$", re.MULTILINE)
_END_OF_TRACEBACK = re.compile(r"^((?:\w+\.)*\w+): (.+)$", re.MULTILINE)
_SQLSTATE = re.compile(r"\s*SQLSTATE: \w+\s*$")


class UsageError(errors.SparkFMError, ValueError):
    """The command line, or a file that it names, cannot be used as given."""


def explain(err: BaseException) -> tuple[int, str]:
    """Return an error's exit code and its text in one line.

    The code is 2 for what the caller can correct in the command or the data, 130 for Ctrl-C,
    143 for SIGTERM, else 1.
    """
    if isinstance(err, KeyboardInterrupt) or was_interrupted():
        return exit_code(), "interrupted; running jobs were cancelled"
    if isinstance(err, UsageError):
        return USAGE, _one_line(str(err))
    if isinstance(err, errors.SparkFMError):
        code = USAGE if isinstance(err, _CALLER_ERRORS) else FAILED
        return code, worded(_one_line(str(err)))
    raised = raised_on_worker(err)
    if raised is not None:
        name, text = raised
        error_class = getattr(errors, name, errors.SparkFMError)
        return (USAGE if issubclass(error_class, _CALLER_ERRORS) else FAILED), worded(text)
    return FAILED, _most_telling_line(err)


def raised_on_worker(err: BaseException) -> tuple[str, str] | None:
    """Return class name and text of a spark_fm error that a worker raised, else None."""
    matches = _RAISED_ON_WORKER.findall(str(err))
    return matches[-1] if matches else None


def _most_telling_line(err: BaseException) -> str:
    """Return the most informative line of an error of Spark, Java or Python."""
    text = str(err)
    if "Traceback (most recent call last)" in text:
        raised = _END_OF_TRACEBACK.findall(text.split("Traceback (most recent call last)")[-1])
        if raised:
            return f"a Python worker failed: {': '.join(raised[0])}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(err).__name__
    if lines[0].startswith("An error occurred while calling") and len(lines) > 1:
        lines = [lines[1].lstrip(": ")]
    if isinstance(err, OSError) or lines[0].startswith("["):
        return _SQLSTATE.sub("", lines[0])
    return f"{type(err).__name__}: {_SQLSTATE.sub('', lines[0])}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


# By which a terminal or a scheduler (Kubernetes, YARN, SageMaker) asks a process to stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interruption:
    """The signal that arrived, and whether it must wait."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_held_back = False


_interruption = _Interruption()


def was_interrupted() -> bool:
    """Return whether an interruption arrived in this command."""
    return _interruption.signal is not None


def forget_interruption() -> None:
    """Let the next command of this process start afresh."""
    _interruption.signal = None


def exit_code() -> int:
    """Return what a shell expects of a process that a signal ended."""
    return 128 + (_interruption.signal or signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT or SIGTERM into one KeyboardInterrupt inside the block.

    PySpark installs a handler of its own that calls the JVM. When the main thread is
    waiting for the JVM at that moment, as it mostly is, that call fails and its error
    hides the interruption. Jobs are cancelled by the code that started them.
    """
    forget_interruption()
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
    _interruption.is_held_back = True
    try:
        yield
    finally:
        _interruption.is_held_back = False
    if was_interrupted():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    if was_interrupted():
        return  # let the clean-up run
    _interruption.signal = number
    if _interruption.is_held_back:
        return
    # What fails from here on is a consequence, which py4j reports to the root logger.
    logging.disable(logging.ERROR)
    raise KeyboardInterrupt


def input_format(text: str) -> str:
    """Return a ``--format``; say of tables what to do with them."""
    from spark_fm.formats import convert

    advice = convert.table_advice(text)
    if advice is not None:
        raise argparse.ArgumentTypeError(f"{text} is not read: {advice}")
    return text


def table_advice(name: str) -> str | None:
    """Return what to do with a file whose name says that it is a table; None for others."""
    from spark_fm.formats import convert

    advice = convert.table_advice(convert.suffix_of(name))
    return None if advice is None else f"{name} is not read: {advice}"
