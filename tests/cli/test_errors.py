"""Errors as one line and an exit code; no Spark."""

from __future__ import annotations

import pytest

from spark_fm import errors
from spark_fm.cli import train, tune
from spark_fm.cli.errors import UsageError, explain
from spark_fm.cli.main import main, program
from spark_fm.cli.wording import NUM_FEATURES, kebab
from spark_fm.ml.params import PARAMS

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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("trian --input x", "unknown command 'trian'; did you mean train?"),
        ("--versoin", "unknown flag --versoin; did you mean --version?"),
        ("train --inptu x --model m", "unknown flag --inptu; did you mean --input?"),
        ("score --mdoel m --output o", "unknown flag --mdoel; did you mean --model?"),
        ("train --mini_batch_size=3", "unknown flag --mini_batch_size; did you mean --mini-batch"),
        ("train --numFactors 3", "unknown flag --numFactors; did you mean --num-factors?"),
        ("evaluate -model m", "unknown flag -model; did you mean --model?"),
        ("serve --prot 80", "unknown flag --prot; did you mean --port?"),
        ("train --fly", "unknown flag --fly (see spark-fm train --help)"),
        ("train --set numFactor=3 --input x --format libsvm --model m", "did you mean numFactors?"),
        ("train --input x --format libsvm --model m --optimizer adgrad", "--optimizer adgrad is"),
        (
            "tune --input x --format libsvm --model m --out . --refit no",
            "--refit no is not",
        ),
    ],
)
def test_what_is_misspelt_is_told_with_the_nearest_name_before_spark_starts(
    words, told, capsys, monkeypatch
):
    for command in (train, tune):
        monkeypatch.setattr(command, "spark_session", None)

    assert main(words.split()) == 2

    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_version_and_help_end_well(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spark-fm ")
    for command in ("train", "evaluate", "score"):
        assert main([command, "--help"]) == 0
        assert f"example:\n  spark-fm {command} --" in capsys.readouterr().out


def test_a_program_that_fails_leaves_with_its_code(monkeypatch):
    monkeypatch.setattr("sys.argv", ["spark-fm", "--version"])
    assert program() is None
    monkeypatch.setattr("sys.argv", ["spark-fm", "trian"])
    with pytest.raises(SystemExit) as left:
        program()
    assert left.value.code == 2


@pytest.mark.parametrize("command", ["train", "tune"])
def test_help_shows_the_parameters_to_know_first_and_help_all_the_others_too(command, capsys):
    printed = []
    for flag in ("--help", "--help-all"):
        assert main([command, flag]) == 0
        printed.append(capsys.readouterr().out)

    short, long = printed
    assert "--num-factors N" in short
    assert "--adagrad-init" not in short
    names = [f"--{kebab(row.name)}" for row in PARAMS if row.name != NUM_FEATURES]
    assert [name for name in names if name not in long] == []
    assert "initial value of AdaGrad's sums" in " ".join(long.split())


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl.gz", "rows.TSV"])
def test_a_table_without_a_format_is_told_what_to_make_of_it(name, capsys):
    assert main(["train", "--input", name, "--model", "m"]) == 2

    told = capsys.readouterr().err
    assert f"{name} is not read: " in told
    assert "FeatureHasher" in told
