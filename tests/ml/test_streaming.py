"""Structured Streaming: a stream of files gets exactly the scores of the same rows in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachineModel
from tests.ml.builders import column, fast_fm

OUTPUTS = ["score", "predicted_label", "probability", "rawPrediction", "prediction"]


@pytest.fixture(scope="module")
def files(train: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    """300 rows with an id in three Parquet files."""
    folder = str(tmp_path_factory.mktemp("stream") / "rows")
    rows = train.withColumn("id", F.monotonically_increasing_id())
    rows.repartition(3, "id").write.parquet(folder)
    return folder


def stream(spark: SparkSession, folder: str) -> DataFrame:
    schema = spark.read.parquet(folder).schema
    return spark.readStream.schema(schema).option("maxFilesPerTrigger", 1).parquet(folder)


def run(frame: DataFrame, folder: Path) -> DataFrame:
    """Run a stream until its source is read up, and return what it wrote."""
    assert frame.isStreaming
    writer = frame.writeStream.format("parquet").trigger(availableNow=True)
    query = writer.option("checkpointLocation", str(folder / "checkpoint")).start(
        str(folder / "written")
    )
    query.awaitTermination()
    batches = {path.name for path in (folder / "written" / "_spark_metadata").iterdir()}
    assert {"0", "1", "2"} <= batches  # one a file
    return frame.sparkSession.read.parquet(str(folder / "written")).orderBy("id")


def test_a_stream_has_the_scores_of_the_batch(
    spark: SparkSession, classifier: FactorizationMachineModel, files: str, tmp_path: Path
) -> None:
    expected = classifier.transform(spark.read.parquet(files)).orderBy("id")

    written = run(classifier.transform(stream(spark, files)), tmp_path)

    assert written.columns == expected.columns
    assert written.collect() == expected.collect()
    assert written.count() == 300


def test_a_stream_may_skip_rows_and_filter_by_score(
    spark: SparkSession, classifier: FactorizationMachineModel, files: str, tmp_path: Path
) -> None:
    def broken(rows: DataFrame) -> DataFrame:
        is_bad = F.col("id") % 3 == 0
        nan = array_to_vector(F.transform(vector_to_array("features"), lambda _: F.lit(np.nan)))
        return rows.withColumn("features", F.when(is_bad, nan).otherwise(F.col("features")))

    model = classifier.copy().setHandleInvalid("skip")
    expected = model.transform(broken(spark.read.parquet(files))).where("score > 0.5")

    written = run(model.transform(broken(stream(spark, files))).where("score > 0.5"), tmp_path)

    assert 0 < written.count() < 200
    assert np.array_equal(column(written, "score"), column(expected.orderBy("id"), "score"))


def test_a_pipeline_scores_a_stream_of_raw_columns(
    spark: SparkSession, train: DataFrame, tmp_path: Path
) -> None:
    values = vector_to_array("features")
    raw = train.select(
        "label", values[0].alias("a"), values[1].alias("b"),
        F.monotonically_increasing_id().alias("id"),
    )  # fmt: skip
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="features")
    model = Pipeline(stages=[assembler, fast_fm()]).fit(raw)
    folder = str(tmp_path / "raw")
    raw.repartition(3, "id").write.parquet(folder)

    written = run(model.transform(stream(spark, folder)), tmp_path)

    expected = model.transform(raw).orderBy("id")
    assert np.array_equal(column(written, "score"), column(expected, "score"))
