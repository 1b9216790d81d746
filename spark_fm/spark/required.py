"""Whether there is a PySpark to work with; driver only, and imports none itself."""

OLDEST_SPARK = 4  # its major version


def check_pyspark(what: str) -> None:
    """Raise ImportError, with what to do, unless there is a PySpark that ``what`` can use."""
    try:
        import pyspark
    except ModuleNotFoundError as err:
        raise ImportError(
            f"{what} needs PySpark: pip install 'spark-fm[spark]', or use the PySpark that a "
            "cluster's runtime brings. Without it, spark_fm.load(path) scores with a saved model."
        ) from err
    if int(pyspark.__version__.split(".")[0]) < OLDEST_SPARK:
        raise ImportError(
            f"{what} needs PySpark {OLDEST_SPARK}.0 or newer; this is {pyspark.__version__}. "
            f"Take a runtime with Spark {OLDEST_SPARK}, or pip install 'spark-fm[spark]'."
        )
