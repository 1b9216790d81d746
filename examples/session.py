"""A quiet local Spark session with the shipped settings and this checkout's workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession


def local_session(master: str = "local[2]", **settings: str) -> SparkSession:
    """Start the session.

    Parameters
    ----------
    master : str
    **settings : str
        Spark settings, dots written as underscores.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    root = Path(__file__).resolve().parent.parent
    builder = (
        SparkSession.builder.master(master)
        .appName("spark_fm")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.executorEnv.PYTHONPATH", str(root))
        .config("spark.log.level", "ERROR")
        .config(
            "spark.driver.extraJavaOptions",
            f"-Dlog4j2.configurationFile={(root / 'conf' / 'log4j2.properties').as_uri()}",
        )
    )
    settings_lines = (root / "conf" / "spark-defaults.conf").read_text().splitlines()
    for line in settings_lines:
        if line and not line.startswith("#"):
            name, value = line.split(maxsplit=1)
            builder = builder.config(name, value)
    for name, value in settings.items():
        builder = builder.config(name.replace("_", "."), value)
    return builder.getOrCreate()
