"""Train, score, save, load and serve once; conf/test-matrix.sh runs it beside the wheel."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")

import pyspark
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import SparkSession

import spark_fm
from spark_fm import FactorizationMachine, FactorizationMachineModel, datasets


def answered(url: str, body: bytes | None = None) -> bytes:
    """Return the answer of a server that is starting."""
    for _ in range(300):
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            return urllib.request.urlopen(request, timeout=10).read()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(url)


def served(path: str, instance: list[float]) -> float:
    """Return the score that ``spark-fm serve`` gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("spark-fm")), "serve", path, "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        answered(f"http://127.0.0.1:{port}/ping")
        body = json.dumps({"instances": [{"features": instance}]}).encode()
        answer = answered(f"http://127.0.0.1:{port}/invocations", body)
        return json.loads(answer)["predictions"][0]["score"]
    finally:
        server.terminate()
        server.wait()


spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
train, test = datasets.a9a(spark)
train, test = train.limit(4000), test.limit(1000).cache()
rates = {"biasLr": 0.1, "linearLr": 0.1, "factorsLr": 0.1}  # no race: one kernel is compiled
model = FactorizationMachine(numFactors=4, epochs=3, refit="never", **rates).fit(train)
area = BinaryClassificationEvaluator().evaluate(model.transform(test))
if area < 0.85:
    raise SystemExit(f"area under the ROC {area:.3f}, expected 0.85 or more")
with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/fm.model"
    model.save(path)
    rows = test.limit(3).toPandas()
    scores = spark_fm.load(path).predict(rows)
    again = FactorizationMachineModel.load(path).transform(test.limit(3)).toPandas()["score"]
    first = served(path, rows["features"][0].toArray().tolist())
spark.stop()
for other in (again[0], first):
    if abs(other - scores[0]) > 1e-6:
        raise SystemExit(f"scores {scores[0]} and {other} of one row")
versions = f"Python {sys.version.split()[0]}, PySpark {pyspark.__version__}"
sys.stdout.write(f"{versions}: ok, area {area:.3f}\n")
