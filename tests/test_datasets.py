"""The shipped table is UCI Adult, with the rows and features of LIBSVM's a9a."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

from spark_fm import datasets
from spark_fm.formats.vectors import read_vectors


def test_a_table_of_text_needs_no_spark() -> None:
    train, test = datasets.adult()

    assert (train.num_rows, test.num_rows) == (32_561, 16_281)
    assert train.column_names == [*datasets.ADULT_COLUMNS, "label"]
    assert {str(kind) for kind in train.schema.types} == {"string", "double"}
    assert sum(train["label"].to_pylist()) == 7_841  # as UCI states it: 24.08 %
    counts = dict(map(dict.values, train["education"].value_counts().to_pylist()))
    assert (counts["HS-grad"], counts["Doctorate"], counts["Preschool"]) == (10_501, 413, 51)
    assert train["workclass"].null_count == 1_836


def test_the_vectors_are_those_of_a9a() -> None:
    real = pytest.importorskip("benchmarks.datasets")  # which needs PySpark
    split = real.a9a()

    for table, rows in zip(datasets.a9a(), (split.train, split.test), strict=True):
        vectors = read_vectors(table["features"].combine_chunks())
        assert np.array_equal(table["label"], rows.y)
        assert np.array_equal(vectors.indptr, rows.X.indptr)
        assert np.array_equal(vectors.indices, rows.X.indices)
        assert set(vectors.values) == {1.0}
        assert set(vectors.sizes) == {123}


def test_its_examples_print_what_they_say() -> None:
    failures, tried = doctest.testmod(datasets)

    assert tried > 0
    assert failures == 0


@pytest.mark.connect
class TestDataFrames:
    def test_raw_columns_arrive_with_nulls_where_unknown(self, spark: object) -> None:
        train, test = datasets.adult(spark)

        assert train.columns == [*datasets.ADULT_COLUMNS, "label"]
        assert test.count() == 16_281
        assert train.where("workclass is null").count() == 1_836

    @pytest.mark.parametrize("limit", ["0", "-1"])
    def test_no_limit_of_rows_a_batch_is_no_error(self, spark: Any, limit: str) -> None:
        name = "spark.sql.execution.arrow.maxRecordsPerBatch"
        spark.conf.set(name, limit)
        try:
            table, vectors = datasets.adult(spark)[1], datasets.a9a(spark)[1]
            found = table.count(), table.where("workclass is null").count(), vectors.first()
        finally:
            spark.conf.unset(name)

        assert found[:2] == (16_281, 963)
        assert found[2]["features"].size == 123
        assert found[2] == datasets.a9a(spark)[1].first()

    def test_vectors_arrive_with_the_names_of_their_features(self, spark: object) -> None:
        train, _ = datasets.a9a(spark)

        names = train.schema["features"].metadata["ml_attr"]["attrs"]["binary"]
        row = train.where("label = 1").first()
        assert len(names) == row["features"].size == 123
        assert names[0] == {"idx": 0, "name": "age=17-25"}
        assert names[122] == {"idx": 122, "name": "native_country=Holand-Netherlands"}
