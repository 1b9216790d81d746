"""Files in recordIO-protobuf, the format of SageMaker's algorithms, without Spark.

For Spark use the data source instead; this module is for NumPy and SciPy.
"""

from __future__ import annotations

from spark_fm.formats.recordio.reader import Malformed, RowBatch, read_batches, read_records
from spark_fm.formats.recordio.writer import write_record_set, write_records

__all__ = [
    "Malformed",
    "RowBatch",
    "read_batches",
    "read_records",
    "write_record_set",
    "write_records",
]
