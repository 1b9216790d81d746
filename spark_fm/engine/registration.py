"""Make the data source known to a session; driver only."""

from __future__ import annotations

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from spark_fm.engine.recordio_source import RecordIODataSource
from spark_fm.engine.session import use_driver_interpreter


def register(spark: SparkSession) -> None:
    """Register the data source ``recordio-protobuf`` with a session, Classic or Connect.

    Not needed where Spark finds the wheel's module ``pyspark_recordio_protobuf`` by
    itself; calling it there, or again, does no harm. On a local master the source runs
    in this interpreter, unless PYSPARK_PYTHON names another.
    """
    use_driver_interpreter(spark)
    try:
        spark.dataSource.register(RecordIODataSource)
    except AnalysisException as err:
        if err.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
            raise
