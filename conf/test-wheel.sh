#!/usr/bin/env bash
# Build sdist and wheel; test the wheel in an environment of its own, with the oldest PySpark.
# make test-wheel calls it, with JAVA_HOME set. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
rm -rf dist
"${VENV:-.venv}/bin/python" -m build --outdir dist . >"$clean/build.log" 2>&1 || {
    cat "$clean/build.log"
    exit 1
}

"${PYTHON:-python3}" -m venv "$clean/venv"
"$clean/venv/bin/python" -m pip install --quiet --upgrade pip
"$clean/venv/bin/python" -m pip install --quiet dist/spark_fm-*.whl 'pyspark==4.0.*'
(
    cd "$clean"
    venv/bin/spark-fm --version
    venv/bin/spark-fm train --help >/dev/null
)
"$clean/venv/bin/python" -m pip install --quiet pytest pytest-timeout pytest-xdist hypothesis
cp -r tests benchmarks pyproject.toml "$clean" # away from the checkout's own package
cd "$clean"
venv/bin/python -m pytest "$@" tests/ml/test_transform.py tests/ml/test_persistence.py \
    tests/datasource/test_recordio.py tests/datasource/test_streaming.py
# Spark finds the data source in the wheel, without a call.
venv/bin/python - <<'PROGRAM'
import os, sys
from pyspark.sql import SparkSession
from spark_fm.recordio import write_records

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
write_records("found.pbr", [[1.0, 2.0]], [1])
spark = SparkSession.builder.master("local[1]").getOrCreate()
assert spark.read.format("recordio-protobuf").load("found.pbr").count() == 1
PROGRAM
