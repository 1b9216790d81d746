#!/usr/bin/env bash
# Build sdist and wheel; test the wheel in environments of its own: one without PySpark and Java,
# one with the oldest PySpark and pandas. make test-wheel calls it, with JAVA_HOME set. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
rm -rf dist
"${VENV:-.venv}/bin/python" -m build --outdir dist . >"$clean/build.log" 2>&1 || {
    cat "$clean/build.log"
    exit 1
}
wheel=$(echo "$PWD"/dist/spark_fm-*.whl)
cp -r tests benchmarks examples pyproject.toml "$clean" # away from the checkout's own package

# A virtual environment with the wheel and these extras.
install() {
    "${PYTHON:-python3}" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --upgrade pip
    "$1/bin/python" -m pip install --quiet "$wheel$2" "${@:3}"
}

cd "$clean"
install slim '[serve,mlflow]' pytest pytest-timeout hypothesis
(
    unset JAVA_HOME
    if slim/bin/python -c 'import pyspark' 2>/dev/null; then
        echo "the slim environment has PySpark"
        exit 1
    fi
    slim/bin/spark-fm --version
    slim/bin/python -m pytest -o addopts=-q tests/test_without_spark.py tests/test_mlflow_scorer.py \
        tests/test_datasets.py -m 'not connect' tests/formats/test_record_files.py tests/serving/test_server.py tests/serving/test_client.py
)

install venv '[spark]' 'pyspark==4.0.*' 'pandas==2.2.*'
venv/bin/spark-fm --version
venv/bin/spark-fm train --help >/dev/null
venv/bin/python -m pip install --quiet pytest pytest-timeout pytest-xdist hypothesis
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
