"""Where Spark looks for data sources: modules named ``pyspark_*`` with a DefaultSource.

Spark imports this in every application that uses a Python data source, so it is light
and never raises: an error here would take all of them away.
"""

try:
    from spark_fm.datasource.recordio import RecordIODataSource as DefaultSource
except Exception:  # noqa: BLE001 - see above
    pass
else:
    __all__ = ["DefaultSource"]
