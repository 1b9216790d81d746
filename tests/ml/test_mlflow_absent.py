"""A program that does not use MLflow never imports it."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
from pyspark.sql import DataFrame

from spark_fm import FactorizationMachineModel
from spark_fm.mlflow import log_model
from tests.ml.builders import fast_fm


def test_fit_does_not_import_mlflow(train: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)

    fast_fm().fit(train)

    assert "mlflow" not in sys.modules


def test_a_module_of_that_name_that_is_not_mlflow_does_no_harm(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))

    with caplog.at_level(logging.WARNING, "spark_fm"):
        model = fast_fm().fit(train)

    assert model.summary.totalIterations == 2
    assert sum("not logged to MLflow" in r.getMessage() for r in caplog.records) == 1


def test_without_mlflow_the_extra_is_named(
    classifier: FactorizationMachineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)

    with pytest.raises(ImportError, match=r"spark-fm\[mlflow\]"):
        log_model(classifier)
