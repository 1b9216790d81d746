"""What type checkers see of the Params is what the table makes of them."""

from __future__ import annotations

import ast
import inspect
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters
from spark_fm.ml import accessors
from spark_fm.ml.params import PARAMS
from spark_fm.spark.schema import ColumnNames
from spark_fm.training.config import TrainConfig

WRITER = Path(__file__).resolve().parents[2] / "conf" / "write_stubs.py"


def test_the_stub_is_what_make_params_writes() -> None:
    writer = runpy.run_path(str(WRITER))

    assert writer["STUB"].read_text() == writer["stub"]()


@pytest.mark.parametrize("name", ["FMParams", "EstimatorParams", "ModelParams"])
def test_every_accessor_of_the_stub_has_the_name_and_the_docstring_of_the_real_one(
    name: str,
) -> None:
    tree = ast.parse(runpy.run_path(str(WRITER))["stub"]())
    [stub] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    methods = [node for node in stub.body if isinstance(node, ast.FunctionDef)]

    for node in methods:
        real = getattr(getattr(accessors, name), node.name)
        assert real.__name__ == node.name
        if node.name not in ("__init__", "setParams"):
            assert inspect.getdoc(real) == ast.get_docstring(node)
            assert list(inspect.signature(real).parameters) == [a.arg for a in node.args.args]


@pytest.mark.parametrize(
    ("owner", "dataclass"),
    [
        ("spec", Hyperparameters),
        ("bias", GroupHyperparameters),
        ("linear", GroupHyperparameters),
        ("factors", GroupHyperparameters),
        ("config", TrainConfig),
        ("columns", ColumnNames),
    ],
)
def test_every_field_of_a_training_comes_from_one_param(owner: str, dataclass: type) -> None:
    fed = [row.feeds.partition(".")[2] for row in PARAMS if row.feeds.startswith(f"{owner}.")]
    # From several Params, from which of them are set, or from a search.
    built = {"loss", "bias", "linear", "factors", "spec", "columns", "chosen_rates", "sweeps",
             "sweep_patience", "n_tried"}  # fmt: skip

    assert sorted(fed) == sorted({field.name for field in fields(dataclass)} - built)
