"""The Spark data source ``recordio-protobuf``: batch and streaming reads, and writes.

Spark's own Python processes import ``recordio``, which therefore loads no NumPy and no Numba.
It imports ``formats`` and ``spark``; the command line and ``spark_fm`` itself import it.
"""
