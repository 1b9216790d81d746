"""Write Spark's classes, parsed and verified, where JVMs find them and start in half the time.

``make`` calls it with JAVA_HOME set and the archive's path in the virtual environment, where
``tests/conftest.py`` looks for it. A JVM with other jars, or of another Java, passes it over.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pyspark import SparkContext
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from spark_fm import FactorizationMachine


def use_classes(folder: str) -> None:
    """Do what most tests do."""
    spark = (
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    )
    rows = [(float(i % 2), Vectors.sparse(4, [i % 4], [1.0])) for i in range(100)]
    frame = spark.createDataFrame(rows, ["label", "features"])
    model = FactorizationMachine(solver="sgd", epochs=1, numWorkers=2).fit(frame)
    model.save(f"{folder}/model")
    model.transform(frame).write.parquet(f"{folder}/scored")
    spark.read.parquet(f"{folder}/scored").groupBy("prediction").count().collect()
    spark.stop()


def main(archive: Path) -> None:
    """Write the archive, which appears when it is whole: half of one crashes a JVM."""
    part = archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    options = (
        f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:disable -XX:ArchiveClassesAtExit={part}"
    )
    os.environ["SPARK_SUBMIT_OPTS"] = options
    with tempfile.TemporaryDirectory() as folder:
        use_classes(folder)
    jvm = SparkContext._gateway.proc
    jvm.stdin.close()
    jvm.wait()  # it writes as it ends
    part.rename(archive)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
