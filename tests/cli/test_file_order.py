"""Rows of files come in the order of names and places, whatever the files' sizes."""

from __future__ import annotations

import pytest

from spark_fm.cli.input_formats import InputSpec, in_file_order
from spark_fm.cli.inputs import open_source


@pytest.fixture
def small_splits(spark):
    """Make Spark cut files every 200 bytes."""
    names = ("spark.sql.files.maxPartitionBytes", "spark.sql.files.openCostInBytes")
    before = {name: spark.conf.get(name) for name in names}
    for name in names:
        spark.conf.set(name, "200")
    yield
    for name, value in before.items():
        spark.conf.set(name, value)


def test_lines_are_in_the_order_of_names_and_offsets(spark, tmp_path, small_splits):
    lines = [f"line {number:04d}" for number in range(200)]
    for name, part in (("a", lines[:3]), ("b", lines[3:150]), ("c", lines[150:])):
        (tmp_path / name).write_text("\n".join(part) + "\n")
    text = spark.read.text(str(tmp_path))

    found = [row[0] for row in in_file_order(text).collect()]

    assert [row[0] for row in text.collect()] != lines  # Spark's own order is another
    assert found == lines


def test_parquet_rows_are_in_the_order_of_names(spark, tmp_path):
    for name, start, stop in (("c", 50, 60), ("a", 0, 3), ("b", 3, 50)):
        part = spark.range(start, stop, 1, 1)
        part.write.parquet(str(tmp_path / name))
    frame = spark.read.parquet(*(str(tmp_path / name) for name in "cab"))

    found = [row[0] for row in in_file_order(frame).collect()]

    assert found == list(range(60))


def test_libsvm_rows_are_read_in_file_order_when_asked_for(spark, tmp_path, small_splits):
    for name, start, stop in (("c", 60, 99), ("a", 0, 3), ("b", 3, 60)):
        lines = [f"{number} 1:1" for number in range(start, stop)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    spec = InputSpec("libsvm", "features", "label", in_order=True)

    frame = open_source(spark, [str(tmp_path)], spec).frame

    assert [row[0] for row in frame.select("label").collect()] == list(range(99))
