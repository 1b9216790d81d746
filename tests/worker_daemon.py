"""PySpark's daemon, which forks a worker a task, with what every worker imports imported once.

A task that fails ends its worker, and the tests let many fail: each new one would take more than
a second for these imports. ``spark_fm`` itself is left to the workers.
"""

import numba  # noqa: F401
import pandas  # noqa: F401
import pyarrow  # noqa: F401
import scipy.sparse  # noqa: F401
from pyspark.daemon import manager

if __name__ == "__main__":
    manager()
