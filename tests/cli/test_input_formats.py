"""One object is all that an input format needs."""

from __future__ import annotations

import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F

from spark_fm.cli.input_formats import INPUT_FORMATS, InputFormat, Source
from spark_fm.cli.main import main
from spark_fm.cli.training_io import check_model_path
from spark_fm.errors import InvalidParamError

pytestmark = pytest.mark.spark


class TinyInput(InputFormat):
    name = "tiny"
    help = "forty rows, whatever the path"
    is_streamable = False

    def open(self, spark, paths, spec):
        rows = [(float(i % 2), Vectors.sparse(3, {i % 2: 1.0, 2: 1.0})) for i in range(40)]
        frame = spark.createDataFrame(rows, [spec.label_col, spec.features_col])
        return Source(frame, frame.select(F.col(spec.label_col).alias("label")))


def test_an_object_in_the_registry_is_a_format_of_every_command(
    spark, tmp_path, monkeypatch, capfd
):
    monkeypatch.setitem(INPUT_FORMATS, "tiny", TinyInput())
    model, rows = str(tmp_path / "model"), ["--input", "anywhere", "--format", "tiny"]
    flags = ["--epochs", "1", "--num-factors", "4", "--validation-fraction", "0"]

    codes = [
        main(["train", *rows, "--model", model, *flags]),
        main(["evaluate", *rows, "--model", model]),
        main(["score", *rows, "--model", model, "--output", str(tmp_path / "scores")]),
        main(["train", "--input", "-", "--format", "tiny", "--model", f"{model} of a pipe"]),
        main(["train", "--help"]),
    ]

    printed = capfd.readouterr()
    assert codes == [0, 0, 0, 2, 0]
    assert spark.read.parquet(str(tmp_path / "scores")).count() == 40
    assert "a pipe is read alone, as libsvm, libfm or recordio-protobuf." in printed.err
    assert "tiny: forty rows" in " ".join(printed.out.split())


def test_a_table_of_the_catalog_is_an_input_of_every_command(spark, tmp_path, capfd):
    rows = [(float(i % 2 or -1), Vectors.sparse(3, {i % 2: 1.0, 2: 1.0})) for i in range(40)]
    frame = spark.createDataFrame(rows, ["label", "features"])
    frame.createOrReplaceTempView("forty")
    model = str(tmp_path / "model")
    try:
        codes = [
            main(["train", "--table", "forty", "--model", model, "--epochs", "1",
                  "--validation", "forty", "--num-factors", "2"]),
            main(["evaluate", "--table", "forty", "--model", model]),
            main(["score", "--input", "forty", "--format", "table", "--model", model,
                  "--output", str(tmp_path / "scores")]),
        ]  # fmt: skip
    finally:
        spark.catalog.dropTempView("forty")
    errors = capfd.readouterr().err
    assert main(["evaluate", "--table", "forty", "--model", model]) == 2
    assert main(["train", "--table", "no.such.table", "--model", f"{model}2"]) == 2

    assert codes == [0, 0, 0], errors
    assert "labels -1/1 mapped to 0/1" in errors
    assert spark.read.parquet(str(tmp_path / "scores")).count() == 40
    told = capfd.readouterr().err
    assert "the table forty does not exist. Name it as SHOW TABLES does" in told
    assert "the table no.such.table" in told


@pytest.mark.parametrize("scheme", ["s3a", "gs", "shelf"])
def test_a_model_s_store_that_spark_does_not_know_is_named_before_training(spark, scheme):
    with pytest.raises(InvalidParamError, match=f"no file system for {scheme}://.*packages"):
        check_model_path(spark, f"{scheme}://bucket/model", overwrite=False)
