"""Errors as one line and an exit code; no Spark."""

from __future__ import annotations

import pytest

from spark_fm import errors
from spark_fm.cli.errors import UsageError, explain
from spark_fm.cli.main import main

WORKER_TEXT = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "scoring.py", line 63, in __call__
    raise InvalidDataError(
{}
"""


@pytest.mark.parametrize(
    ("err", "code", "text"),
    [
        (UsageError("a\n  b"), 2, "a b"),
        (errors.InvalidDataError("bad"), 2, "bad"),
        (errors.ModelFormatError("no model"), 2, "no model"),
        (errors.ModelTooLargeError("large"), 1, "large"),
        (KeyboardInterrupt(), 130, "interrupted; running jobs were cancelled"),
        (RuntimeError(WORKER_TEXT.format("spark_fm.errors.InvalidDataError: x")), 2, "x"),
        (RuntimeError(WORKER_TEXT.format("spark_fm.errors.VersionMismatchError: y")), 1, "y"),
        (
            RuntimeError(WORKER_TEXT.format("ModuleNotFoundError: No module named 'z'")), 1,
            "a Python worker failed: ModuleNotFoundError: No module named 'z'",
        ),
        (RuntimeError("[SOME_CONDITION] what. SQLSTATE: 42K03\nmore"), 1, "[SOME_CONDITION] what."),
        (
            RuntimeError("An error occurred while calling o1.x.\n: java.io.IOException: disk\n at"),
            1, "RuntimeError: java.io.IOException: disk",
        ),
        (RuntimeError(), 1, "RuntimeError"),
    ],
)  # fmt: skip
def test_errors_have_an_exit_code_and_one_line(err, code, text):
    assert explain(err) == (code, text)


@pytest.mark.parametrize("words", [[], ["fly"], ["train"], ["score", "--model", "m"]])
def test_a_wrong_command_is_one_line_and_exit_code_2(words, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("spark-fm: error: ")
    assert err.count("\n") == 1


def test_version_and_help_end_well(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spark-fm ")
    for command in ("train", "evaluate", "score"):
        assert main([command, "--help"]) == 0
        assert f"example:\n  spark-fm {command} --" in capsys.readouterr().out
