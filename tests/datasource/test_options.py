"""Options of the data source that have no effect are named, with those that have one."""

from __future__ import annotations

import pytest
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.types import DoubleType, StructField, StructType

from spark_fm.datasource.recordio import RecordIODataSource


def schema():
    return StructType([StructField("label", DoubleType())])


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("featureDimm", "did you mean featureDim?"),
        ("recursiveFileLookups", "did you mean recursiveFileLookup?"),
        ("header", "there are path, paths, featureDim, numFeatures, mode"),
        ("labelCol", "has no effect when records are read"),
    ],
)
def test_an_unknown_option_of_a_read_is_a_warning(caplog, option, hint):
    RecordIODataSource({"path": "x", "FeatureDim": "3", option: "4"}).reader(schema())

    (warning,) = caplog.messages
    assert option in warning
    assert hint in warning


def test_known_options_give_no_warning(caplog):
    options = {"path": "x", "numfeatures": "3", "COMPRESSION": "gzip", "pathGlobFilter": "*.pbr"}
    RecordIODataSource(options).reader(schema())

    assert not caplog.messages


@pytest.mark.parametrize(
    ("option", "hint"),
    [("labelColumn", "did you mean label"), ("featureDim", "when records are written")],
)
def test_an_unknown_option_of_a_write_is_a_warning(caplog, option, hint):
    features = StructType([StructField("features", VectorUDT())])
    RecordIODataSource({"path": "x", option: "label"}).writer(features, overwrite=True)

    (warning,) = caplog.messages
    assert option in warning
    assert hint in warning
