"""Where Spark looks for the data source ``sagemaker``; see pyspark_recordio_protobuf."""

try:
    from spark_fm.datasource.recordio import SageMakerDataSource as DefaultSource
except Exception:  # noqa: BLE001 - an error here would take all data sources away
    pass
else:
    __all__ = ["DefaultSource"]
