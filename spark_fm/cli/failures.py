"""What a failure is called, in one line, and which exit code it has; driver only."""

from __future__ import annotations

import re

from spark_fm import errors
from spark_fm.cli.interrupts import exit_code, was_interrupted

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
