"""Tasks that read files themselves take Spark's rows, in its order and partitions."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

import spark_fm
from spark_fm.cli.input_formats import INPUT_FORMATS, InputSpec
from spark_fm.errors import InvalidDataError
from spark_fm.formats.text import LineParser, ParseTask
from spark_fm.spark.scans import FileRange, Scan, ScanColumn, plain_scan
from spark_fm.spark.schema import ColumnNames, internal_rows
from spark_fm.spark.session import is_connect
from spark_fm.training import dataset
from spark_fm.training.scans import UnreadableError, read_partition
from spark_fm.training.trainer import open_trainer
from tests.training.builders import assert_same_model, machine
from tests.training.test_training_through_files import files_left

N_FEATURES = 12
NAMES = {
    "labelCol": "y", "featuresCol": "x", "weightCol": "w", "validationIndicatorCol": "held",
    "handleInvalid": "skip",
}  # fmt: skip


@pytest.fixture(autouse=True)
def classic(spark):
    if is_connect(spark):
        pytest.skip("a Connect client does not see the plan: Spark reads the rows")


@pytest.fixture
def read_by_tasks(monkeypatch):
    """Whether each packing from now on was read by the tasks."""
    seen = []
    packed = dataset._packed_by_readers

    def noted(*args):
        table = packed(*args)
        seen.append(table is not None)
        return table

    monkeypatch.setattr(dataset, "_packed_by_readers", noted)
    return seen


def touched(frame):
    """The same rows by a plan that is more than a read."""
    return frame.where(F.rand(1) < 2)


def fingerprint(frame, **params):
    """The digest of the packed rows, in their order."""
    config = machine(**params)._train_config(frame)
    with open_trainer(internal_rows(frame, config.columns), config) as trainer:
        return trainer.fingerprint


def vector(i):
    if i % 7 == 0:
        return Vectors.dense(np.arange(N_FEATURES) * (i % 3 - 0.5))
    return Vectors.sparse(N_FEATURES, [i % 5, 5 + i % 7], [1.0, (i % 11) / 4])


def rows_frame(spark, n_rows):
    rows = [
        (i % 2 if i % 97 else None, vector(i) if i % 89 else None, i % 4 + 1, i % 5 == 0)
        for i in range(n_rows)
    ]
    return spark.createDataFrame(rows, ["y", "x", "w", "held"]).withColumn(
        "y", F.col("y").cast("int")
    )


@pytest.fixture(scope="module")
def folder(spark, tmp_path_factory):
    """Files of many row groups and of one, with null rows, weights and a validation set."""
    path = str(tmp_path_factory.mktemp("scans") / "rows of a scan %20")
    small_groups = {"parquet.block.size": "8000", "parquet.block.size.row.check.min": "10"}
    rows_frame(spark, 2000).repartition(2).write.options(**small_groups).parquet(path)
    rows_frame(spark, 700).repartition(3).write.mode("append").parquet(path)
    return path


@pytest.fixture(scope="module")
def records(spark, folder, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("scans") / "records")
    spark_fm.register(spark)
    rows = spark.read.parquet(folder).where("y is not null and x is not null")
    rows = rows.select(F.col("y").alias("label"), F.col("x").alias("features"))
    rows.write.format("recordio-protobuf").mode("overwrite").save(path)
    return path


@pytest.mark.parametrize("part_bytes", ["128m", "6000b"])
def test_a_read_of_parquet_gives_the_bits_of_the_frame(spark, folder, read_by_tasks, part_bytes):
    spark.conf.set("spark.sql.files.maxPartitionBytes", part_bytes)
    try:
        frame = spark.read.parquet(folder)
        same_rows = fingerprint(frame, **NAMES) == fingerprint(touched(frame), **NAMES)
        ours, through_spark = (machine(**NAMES).fit(each) for each in (frame, touched(frame)))
    finally:
        spark.conf.unset("spark.sql.files.maxPartitionBytes")

    assert read_by_tasks == [True, False, True, False]
    assert same_rows
    assert_same_model(ours, through_spark)
    facts = ("trainRows", "validationRows", "skippedRows", "inputPartitions")
    assert [ours.summary.facts.get(name) for name in facts] == [
        through_spark.summary.facts.get(name) for name in facts
    ]


def test_a_read_of_records_gives_the_rows_of_the_frame(spark, records, read_by_tasks):
    frame = spark.read.format("recordio-protobuf").option("splitBytes", 2**15).load(records)

    assert fingerprint(frame) == fingerprint(touched(frame))
    assert read_by_tasks == [True, False]


def test_bad_rows_have_the_message_of_the_frame(spark, folder, read_by_tasks):
    names = NAMES | {"handleInvalid": "error"}
    frame = spark.read.parquet(folder)
    messages = []
    for each in (frame, touched(frame)):
        with pytest.raises(InvalidDataError, match="null features") as raised:
            machine(**names).fit(each)
        messages.append(str(raised.value))

    assert messages[0] == messages[1]
    assert read_by_tasks == [True, False]


def test_files_of_other_writers_are_read_alike(spark, tmp_path, read_by_tasks):
    generator = np.random.default_rng(1)
    for number, is_large in enumerate((False, True)):
        lists = pa.large_list if is_large else pa.list_
        vectors = [generator.normal(0, 1, 3).tolist() if i % 9 else None for i in range(400)]
        columns = {
            "features": pa.array(vectors, lists(pa.float32())),
            "label": pa.array([bool(i % 2) if i % 50 else None for i in range(400)]),
            "weight of it": pa.array(np.arange(400) % 3, pa.int8()),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", row_group_size=150)
    frame = spark.read.parquet(str(tmp_path))
    params = {"weightCol": "weight of it", "handleInvalid": "skip"}

    assert fingerprint(frame, **params) == fingerprint(touched(frame), **params)
    assert read_by_tasks == [True, False]


@pytest.mark.parametrize("part_bytes", ["128m", "1000b"])
def test_a_read_of_libsvm_gives_the_rows_of_the_frame(spark, tmp_path, read_by_tasks, part_bytes):
    lines = [f"{i % 2}" + "".join(f" {j}:{(i + j) / 7!r}" for j in range(1 + i % 3, 9, 1 + i % 4))
             for i in range(300)]  # fmt: skip
    (tmp_path / "a.txt").write_text("\n".join(lines[:200]))
    (tmp_path / "b.txt").write_text("\n\n".join(lines[200:]) + "  \n")
    spark.conf.set("spark.sql.files.maxPartitionBytes", part_bytes)
    try:
        frame = spark.read.format("libsvm").option("numFeatures", 12).load(str(tmp_path))
        assert fingerprint(frame) == fingerprint(touched(frame))
    finally:
        spark.conf.unset("spark.sql.files.maxPartitionBytes")

    assert read_by_tasks == [True, False]


def lines_frame(spark, path, name="libsvm", **spec):
    spec = InputSpec(
        **{"file_format": name, "features_col": "features", "label_col": "label"} | spec
    )
    return INPUT_FORMATS[name].open(spark, [str(path)], spec).frame


@pytest.mark.parametrize(("name", "part_bytes"), [("libsvm", "128m"), ("libfm", "900b")])
def test_lines_of_the_command_line_give_the_rows_of_the_frame(
    spark, tmp_path, read_by_tasks, name, part_bytes
):
    lines = [f"{i % 2}" + "".join(f" {j}:{(i + j) / 7!r}" for j in range(1 + i % 3, 9, 1 + i % 4))
             for i in range(300)]  # fmt: skip
    (tmp_path / "a.txt").write_bytes("\ufeff".encode() + "\r\n".join(lines[:200]).encode())
    (tmp_path / "b.txt").write_text(
        "\n\n".join(lines[200:]) + "  \n1 bad # and why\n1 qid:3 4:1 # \u00e9\n"
    )
    spark.conf.set("spark.sql.files.maxPartitionBytes", part_bytes)
    try:
        frame = lines_frame(spark, tmp_path, name)
        same = fingerprint(frame, handleInvalid="skip") == fingerprint(
            touched(frame), handleInvalid="skip"
        )
        with pytest.raises(InvalidDataError) as raised:
            fingerprint(frame)
    finally:
        spark.conf.unset("spark.sql.files.maxPartitionBytes")

    assert same
    assert "featuresCol='features' has 1 row(s) with null features" in str(raised.value)
    assert read_by_tasks == [True, False, True]


@pytest.mark.parametrize("line", ["1 1:1\r0 2:1", "1 1:1\r\r\n0 2:1"])
def test_lines_that_end_otherwise_are_left_to_spark(spark, tmp_path, read_by_tasks, line):
    (tmp_path / "a.txt").write_bytes(line.encode() + b"\n1 1:1\n")
    frame = lines_frame(spark, tmp_path)

    assert fingerprint(frame) == fingerprint(touched(frame))
    assert read_by_tasks == [False, False]


def test_other_reads_of_lines_are_done_by_spark(spark, tmp_path):
    (tmp_path / "a.txt").write_text("1 1:1\n")
    (tmp_path / "b.txt").write_text("1 1:1\n")
    parse = ParseTask(LineParser("libsvm"), "label", "features")
    schema = StructType().add("label", "double").add("features", VectorUDT())

    def parsed(lines, function=parse):
        return lines.mapInArrow(function, schema)

    names = {"features": "features", "label": "label"}
    path, text = str(tmp_path), spark.read.text(str(tmp_path))
    others = {
        "file order": lines_frame(spark, path, in_order=True),
        "file names": lines_frame(spark, path, with_file=True),
        "other separator": parsed(spark.read.option("lineSep", ";").text(path)),
        "whole files": parsed(spark.read.text(path, wholetext=True)),
        "filter": parsed(text.where("value > ''")),
        "other function": parsed(text, lambda batches: parse(batches)),
        "twice": parsed(parsed(text).select(F.lit("1 1:1").alias("value"))),
        "filter behind": parsed(text).where("label > 0"),
    }

    assert [name for name, each in others.items() if of(each, **names) is not None] == []
    assert of(parsed(text), **names) is not None


@pytest.mark.parametrize(
    "line",
    ["1 2:1 1:1", "1 1:1 # comment", "1\t2:1", "1 qid:1 2:1", "1 0:1:1", "1 2:nan", "1 13:1",
     "1 1:1\r", "é", "1 2:1d", "1\x1c1:2", "1 1:2\x1f3:4"],
)  # fmt: skip
def test_lines_that_spark_reads_otherwise_are_left_to_it(tmp_path, line):
    path = tmp_path / "a.txt"
    path.write_bytes(b"1 1:2\n0 2:3\n" + line.encode() + b"\n")
    scan = replace(scan_of(path, label=pa.float64()), format="libsvm", width=12)

    with pytest.raises(UnreadableError, match="unusual"):
        list(read_partition(scan, 0))


def test_ranges_of_lines_share_out_the_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i} 1:{i}\n" for i in range(300)))
    whole = replace(scan_of(path, label=pa.float64()), format="libsvm", width=1)
    [[file]] = whole.partitions
    for length in (1, 7, 1000):
        parts = tuple((replace(file, start=start, stop=min(start + length, file.size)),)
                      for start in range(0, file.size, length))  # fmt: skip
        scan = replace(whole, partitions=parts)
        rows = [x for number in range(len(parts)) for batch in read_partition(scan, number)
                for x in batch["label"].to_pylist()]  # fmt: skip
        assert rows == list(range(300))


def of(frame, **names):
    rows = internal_rows(frame, ColumnNames(**{"features": "x", "label": "y"} | names))
    return plain_scan(rows, source="recordio-protobuf", parser=ParseTask)


def test_selecting_renaming_and_casting_to_double_leave_a_read_plain(spark, folder):
    frame = spark.read.parquet(folder)
    frame.createOrReplaceTempView("rows_of_a_scan")
    plain = {
        "read": frame,
        "selected": frame.select("y", "x"),
        "renamed": frame.withColumnRenamed("w", "y2").drop("y").withColumnRenamed("y2", "y"),
        "cast": frame.withColumn("y", F.col("y").cast("double")),
        "alias": frame.alias("a").select("a.x", "a.y"),
        "view": spark.table("rows_of_a_scan"),
        "own schema": spark.read.schema(frame.schema).parquet(folder),
    }

    assert [name for name, each in plain.items() if of(each) is None] == []
    assert of(plain["renamed"]).columns["label"].name == "w"


def test_whatever_else_a_frame_does_is_done_by_spark(spark, folder):
    frame = spark.read.parquet(folder)
    cached = spark.read.parquet(folder).where("w > 0").select("*").cache()
    of_parts = f"{folder}-by-w"
    frame.write.partitionBy("w").mode("overwrite").parquet(of_parts)
    by_udf = F.udf(lambda y: y, "int")
    others = {
        "filter": frame.where("w > 1"),
        "kept filter": touched(frame),
        "join": frame.join(frame.select("w").distinct(), "w"),
        "union": frame.union(frame),
        "udf": frame.withColumn("y", by_udf("y")),
        "computed": frame.withColumn("y", F.col("y") + 1),
        "another cast": frame.withColumn("y", F.col("w").cast("int")),
        "sort": frame.orderBy("w"),
        "sample": frame.sample(0.5, 1),
        "limit": frame.limit(100),
        "repartition": frame.repartition(3),
        "coalesce": frame.coalesce(1),
        "cache": cached,
        "literal": frame.withColumn("y", F.lit(1)),
        "partition columns": spark.read.parquet(of_parts),
        "decimal": frame.withColumn("y", F.col("y").cast("decimal(5,1)")),
        "file metadata": frame.select("x", F.col("_metadata.file_size").alias("y")),
        "other format": spark.read.schema("y int, x array<double>").json(folder),
        "rows": rows_frame(spark, 3),
    }
    cached.unpersist()

    assert [name for name, each in others.items() if of(each) is not None] == []
    assert of(frame) is not None


def test_the_cache_of_a_read_is_read_by_spark(spark, folder):
    frame = spark.read.parquet(folder).select("x", "y").cache()
    try:
        assert of(frame) is None
    finally:
        frame.unpersist()


def test_files_that_differ_from_the_frame_are_read_by_spark(
    spark, folder, read_by_tasks, tmp_path, caplog
):
    table = pa.table({"label": [0.0, 1.0] * 50, "features": [[1.0, 0.5], [0.5, 2.0]] * 50})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.rename_columns(["label", "features2"]), tmp_path / "b.parquet")
    frame = spark.read.schema("label double, features array<double>").parquet(str(tmp_path))

    with caplog.at_level("DEBUG", logger="spark_fm"):
        digest = fingerprint(frame, handleInvalid="skip")

    assert digest == fingerprint(touched(frame), handleInvalid="skip")
    assert read_by_tasks == [False, False]
    assert "b.parquet has not one column 'features'" in caplog.text
    assert files_left(spark) == []


def test_a_broken_file_has_the_error_of_the_frame(spark, records, read_by_tasks, tmp_path):
    [whole, *_] = [each for each in os.scandir(records) if each.name.startswith("part")]
    with open(whole, "rb") as file:
        (tmp_path / "broken.rec").write_bytes(file.read()[:-3])
    frame = spark.read.format("recordio-protobuf").load(str(tmp_path))

    messages = []
    for each in (frame, touched(frame)):
        with pytest.raises(Exception, match=r"broken\.rec") as raised:
            fingerprint(each)
        messages.append((type(raised.value), "broken.rec" in str(raised.value)))

    assert messages[0] == messages[1]
    assert read_by_tasks == [False, False]


# --- Readers alone ---------------------------------------------------------------------------


def scan_of(path, **kinds):
    facts = os.stat(path)
    whole = FileRange(str(path), 0, facts.st_size, facts.st_size, facts.st_mtime_ns // 10**6)
    columns = {name: ScanColumn(name, kind, False) for name, kind in kinds.items()}
    return Scan("parquet", columns, ((whole,),))


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1.0]}), path)
    scan = scan_of(path, a=pa.float64())
    assert [batch["a"].to_pylist() for batch in read_partition(scan, 0)] == [[1.0]]

    pq.write_table(pa.table({"a": [1.0, 2.0]}), path)

    with pytest.raises(UnreadableError, match="has changed"):
        list(read_partition(scan, 0))
    path.unlink()
    with pytest.raises(UnreadableError, match="FileNotFoundError"):
        list(read_partition(scan, 0))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": pa.array([1], pa.int64())}, "'a' is int64 in a file, double in the frame"),
        ({"a": pa.array([1.0], pa.float32())}, "'a' is float in a file"),
        ({"b": pa.array([1.0])}, "has not one column 'a'"),
        ({"A": pa.array([1.0])}, "has not one column 'a'"),
        ({"a": pa.array([1.0]), "A": pa.array([2.0])}, "has not one column 'a'"),
    ],
)
def test_a_file_with_other_columns_is_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")

    with pytest.raises(UnreadableError, match=message):
        list(read_partition(scan_of(tmp_path / "a.parquet", a=pa.float64()), 0))


def test_ranges_of_a_file_share_out_its_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": np.arange(1000.0)}), path, row_group_size=90)
    whole = scan_of(path, a=pa.float64())
    [[file]] = whole.partitions
    cuts = [*range(0, file.size, 700), file.size]
    parts = [
        (FileRange(file.path, start, stop, file.size, file.modified),)
        for start, stop in pairwise(cuts)
    ]
    scan = Scan("parquet", whole.columns, tuple(parts))

    rows = [
        [x for batch in read_partition(scan, number) for x in batch["a"].to_pylist()]
        for number in range(len(parts))
    ]

    assert [x for part in rows for x in part] == list(range(1000))
    assert sum(map(bool, rows)) > 3
