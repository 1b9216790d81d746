"""Forks Python workers that have imported all they need, once for a session of tests.

Otherwise each worker spends more than a second of CPU time on its imports, and a test of a few
tasks more on them than on what it is about.
"""

from __future__ import annotations

import gc

import numba  # noqa: F401
import pandas  # noqa: F401
import pyarrow.compute  # noqa: F401
import pyspark.ml.linalg
import pyspark.sql.pandas.serializers  # noqa: F401
from pyspark.daemon import manager

import spark_fm.datasource.recordio
import spark_fm.scoring.columns
import spark_fm.training.packing
import spark_fm.training.tasks  # noqa: F401

if __name__ == "__main__":
    gc.freeze()
    manager()
