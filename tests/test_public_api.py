"""What others rely on: names, and the version in one place."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import spark_fm

ROOT = Path(__file__).resolve().parent.parent


def test_public_names_are_these():
    assert set(spark_fm.__all__) == {
        "FMClassifier",
        "FMEvaluation",
        "FMEvaluator",
        "FMRegressor",
        "FMTrainingSummary",
        "FactorizationMachine",
        "FactorizationMachineModel",
        "LoadedModel",
        "TuningResult",
        "__version__",
        "instance_vector",
        "load",
        "register",
        "register_udf",
        "request_vectors",
        "response_body",
        "tune",
    }
    for name in spark_fm.__all__:
        assert getattr(spark_fm, name) is not None
    assert set(dir(spark_fm)) >= set(spark_fm.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = spark_fm.Nothing


def test_the_distribution_has_the_package_s_version():
    assert version("spark-fm") == spark_fm.__version__


def test_the_changelog_knows_the_version():
    assert f"## [{spark_fm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_knows_the_version():
    assert f"version: {spark_fm.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_guide_names_defaults_that_are_true():
    from spark_fm.ml.params import DEFAULTS

    guide = (ROOT / "docs" / "using.md").read_text()
    for name, value in {"numFactors": "16", "factorsInitSigma": "0.02", "seed": "0"}.items():
        assert re.search(rf"\| `{name}` \| {re.escape(value)} \|", guide)
        assert float(DEFAULTS[name]) == float(value)
