"""What the library says, in the words of whom it is told: code, flags or a training job."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import spark_fm
from spark_fm.cli.errors import explain
from spark_fm.cli.wording import Audience, reworded, speak_to
from spark_fm.errors import InvalidDataError
from spark_fm.ml.hyperparameters import HYPERPARAMETERS, param_name

FOUND = "has 2 row(s) with label other than 0 or 1, for example 3.0. Clean the data"
BAD_ROWS = f"labelCol='y' {FOUND}, or set handleInvalid='skip' to leave such rows out."


@pytest.fixture
def audience():
    yield speak_to
    speak_to(Audience.CODE)


@pytest.mark.parametrize(
    ("text", "flags", "settings", "job"),
    [
        (BAD_ROWS,
         f"the column 'y' {FOUND}, or give --handle-invalid skip to leave such rows out.",
         f"the column 'y' {FOUND}, or give --set handleInvalid=skip to leave such rows out.",
         f"the channel {FOUND}."),
        ("a: cut. Repair the file, or leave such records out by the option mode=DROPMALFORMED.",
         *["a: cut. Repair the file."] * 3),
        ("numFactors=0 is not allowed: expected 1 to 16384.",
         "--num-factors 0 is not allowed: expected 1 to 16384.",
         "numFactors=0 is not allowed: expected 1 to 16384.",
         "num_factors=0 is not allowed: expected 1 to 16384."),
        ("epochs=0 is not allowed with useBias=False; 3 epochs and a seed are fine.",
         "--epochs 0 is not allowed with --no-use-bias; 3 epochs and a seed are fine.",
         "epochs=0 is not allowed with useBias=False; 3 epochs and a seed are fine.",
         "epochs=0 is not allowed with use_bias=False; 3 epochs and a seed are fine."),
        ('Set the option featureDim, such as .option("featureDim", 100000).',
         "Give --num-features.", "Give --num-features.", "Set feature_dim."),
        ("Hyperparameter epochs='0' is not allowed: see /data/numFactors/epochs=3/x.",
         *["Hyperparameter epochs='0' is not allowed: see /data/numFactors/epochs=3/x."] * 3),
        ("weightCol='my weights' is not a column. Leave weightCol unset.",
         "--weight-col 'my weights' is not a column. Leave --weight-col unset.",
         "--set weightCol='my weights' is not a column. Leave --set weightCol unset.",
         "weightCol='my weights' is not a column. Leave weightCol unset."),
    ],
)  # fmt: skip
def test_a_message_names_what_its_audience_can_set(text, flags, settings, job):
    assert reworded(text, Audience.FLAGS) == flags
    assert reworded(text, Audience.SETTINGS) == settings
    assert reworded(text, Audience.JOB) == job


def texts(path):
    """Yield the texts of a module that are no docstrings; what is formatted in is an x."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in node.values}  # fmt: skip
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inside | docs:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(each.value if isinstance(each, ast.Constant) else "'x'"
                          for each in node.values)  # fmt: skip
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_message_that_a_job_may_end_with_names_a_param_or_an_option():
    names = [name for name in map(param_name, HYPERPARAMETERS) if name != name.lower()]
    unknown = re.compile(
        rf"\b({'|'.join(names)}|featuresCol|labelCol|handleInvalid|mode=|VectorAssembler|option\()"
    )
    package = Path(spark_fm.__file__).parent
    files = [
        *(package / "training").glob("*.py"),
        *(package / "learner").glob("*.py"),
        *(package / "formats" / "recordio").glob("*.py"),
        *(package / "datasource" / name for name in ("batches.py", "splits.py", "recordio.py")),
        *(package / "scoring" / name for name in ("columns.py", "metrics.py")),
        *(package / "spark" / name for name in ("collect.py", "session.py", "resources.py")),
    ]
    found = [text for path in files for text in texts(path) if " " in text and unknown.search(text)]

    assert len(found) > 15
    for text in found:
        assert not unknown.search(reworded(text, Audience.JOB)), text


def test_errors_are_told_in_the_words_of_the_command_that_runs(audience):
    err = InvalidDataError(BAD_ROWS)
    assert explain(err) == (2, BAD_ROWS)
    for each in (Audience.FLAGS, Audience.SETTINGS, Audience.JOB):
        audience(each)
        assert explain(err) == (2, reworded(BAD_ROWS, each))
        on_worker = RuntimeError(f"...\nspark_fm.errors.InvalidDataError: {BAD_ROWS}\n")
        assert explain(on_worker) == (2, reworded(BAD_ROWS, each))
