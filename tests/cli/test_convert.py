"""``spark-fm convert`` as a program of its own, without Spark."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from pyspark.ml.linalg import DenseVector, SparseVector

import spark_fm
from spark_fm.cli.main import main
from spark_fm.recordio import read_records

LINES = b"1 1:0.5 3:2\n0 2:1\n1\n"


@pytest.fixture
def libsvm(tmp_path):
    path = tmp_path / "a.libsvm"
    path.write_bytes(LINES)
    return str(path)


def test_a_file_is_converted_and_what_was_done_is_printed(libsvm, tmp_path, capsys):
    out = str(tmp_path / "a.pbr")

    assert main(["convert", "--input", libsvm, "--output", out]) == 0

    X, y = read_records(out)
    assert X.toarray().tolist() == [[0.5, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert y.tolist() == [1, 0, 1]
    assert capsys.readouterr().out.startswith(f"converted 3 rows, 3 entries, 3 features to {out}")


def test_standard_input_needs_no_file_no_spark_and_no_java(tmp_path):
    out = tmp_path / "a.npz"
    code = (
        "import sys; from spark_fm.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'pyspark' not in sys.modules; sys.exit(code)"
    )
    words = ["convert", "--input", "-", "--format", "libsvm", "--output", str(out)]

    done = subprocess.run(
        [sys.executable, "-c", code, *words], input=LINES, capture_output=True,
        env={**os.environ, "PATH": "/nowhere", "JAVA_HOME": "/nowhere"}, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert np.load(out)["y"].tolist() == [1, 0, 1]


def test_mistakes_are_one_line_exit_with_2_and_leave_nothing(libsvm, tmp_path, capsys):
    there = tmp_path / "there.pbr"
    there.write_bytes(b"old")
    mistakes = {
        f"--input {libsvm} --output {there}": "exists; give another name, or --overwrite",
        f"--input {tmp_path}/no.pbr --output {tmp_path}/x.pbr": "does not exist",
        f"--input {libsvm} --output {tmp_path}/no/x.pbr": "there is no such folder",
        f"--input {libsvm} --output {tmp_path}/x": "--output-format",
        f"--input {libsvm} --output {tmp_path}/x.pbr --num-features 2": "above 2",
        f"--input {libsvm} --output {tmp_path}/x.pbr --num-features 0": "expected 1 to",
        f"--input {there} --output {tmp_path}/x.pbr": "expected the magic|inside a record",
    }
    for words, reason in mistakes.items():
        assert main(["convert", *words.split()]) == 2, words
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert any(part in told for part in reason.split("|")), told

    assert sorted(os.listdir(tmp_path)) == ["a.libsvm", "there.pbr"]
    assert there.read_bytes() == b"old"


@pytest.mark.spark
def test_spark_reads_vectors_from_the_parquet_file_and_its_own_files_are_read(
    spark, libsvm, tmp_path
):
    out, back = str(tmp_path / "a.parquet"), str(tmp_path / "b.pbr")
    assert main(["convert", "--input", libsvm, "--output", out]) == 0

    frame = spark.read.parquet(out)

    rows = [(row.label, row.features) for row in frame.collect()]
    assert rows[:2] == [(1.0, SparseVector(3, [0, 2], [0.5, 2.0])), (0.0, SparseVector(3, {1: 1}))]
    extra = spark.createDataFrame([(4.0, DenseVector([1, 0, 2]))], ["label", "features"])
    extra.union(frame).coalesce(1).write.parquet(str(tmp_path / "folder"))
    words = ["--input", str(tmp_path / "folder"), "--output", back]
    assert main(["convert", *words]) == 0
    spark_fm.register(spark)
    found = spark.read.format("recordio-protobuf").load(back).collect()
    assert [(row.label, row.features) for row in found] == [(4.0, DenseVector([1, 0, 2])), *rows]
