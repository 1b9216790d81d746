"""The data source recordio-protobuf on real Spark: what is written is what is read."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from pyspark.errors import PySparkException
from pyspark.ml.linalg import DenseVector, SparseVector, Vectors, VectorUDT
from pyspark.mllib.linalg import Vectors as MLlibVectors
from pyspark.sql import Row
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StructField, StructType

import spark_fm
from benchmarks.datasets import Rows, to_frame
from spark_fm.formats.vectors import VECTOR_TYPE, read_vectors, vector_column
from spark_fm.recordio import read_records, write_records
from tests.formats.mutations import cut, framed
from tests.formats.test_boundaries import nasty_record

FORMAT = "recordio-protobuf"


@pytest.fixture(scope="module")
def session(spark):
    spark_fm.register(spark)
    return spark


@pytest.fixture(scope="module")
def matrix():
    X = sp.random(900, 50, 0.1, "csr", np.float32, random_state=3)
    return X, np.arange(900, dtype=np.float32)


@pytest.fixture
def file(matrix, tmp_path):
    path = tmp_path / "rows.pbr"
    write_records(path, *matrix)
    return path


def load(session, path, **options):
    return session.read.format(FORMAT).options(**options).load(path)


def dense_rows(frame):
    return {row.label: row.features.toArray().tolist() for row in frame.collect()}


def test_the_vector_type_is_the_one_spark_expects():
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.pandas.types import to_arrow_type

    assert VECTOR_TYPE.equals(to_arrow_type(VectorUDT()))


def test_vector_columns_are_read_back_as_they_were_built():
    indptr = np.array([0, 2, 2, 5, 5])
    column = vector_column(
        indptr, np.array([1, 3, 0, 1, 2], np.int32), np.arange(5.0), np.array([9, 9, 3, 0]),
        is_dense=np.array([False, False, True, False]),
        is_null=np.array([False, False, False, True]),
    )  # fmt: skip

    assert column.type.equals(VECTOR_TYPE)
    column.validate(full=True)
    back = read_vectors(column, keep_zeros=True)
    np.testing.assert_array_equal(back.indptr, indptr)
    np.testing.assert_array_equal(back.indices, [1, 3, 0, 1, 2])
    np.testing.assert_array_equal(back.values, np.arange(5.0))
    assert back.sizes.tolist() == [9, 9, 3, 0]
    assert back.is_dense.tolist() == [False, False, True, False]
    assert back.is_null.tolist() == [False, False, False, True]
    assert pa.concat_arrays([column, column.slice(2)])[4].as_py()["type"] == 1


@pytest.mark.connect
def test_dense_and_sparse_rows_stay_what_they_are(session, tmp_path):
    rows = [
        (1.0, Vectors.sparse(4, [1, 3], [2.0, 0.5])),
        (0.0, Vectors.dense([0.0, 1.0, 0.0, 2.0])),
        (1.0, Vectors.sparse(4, [], [])),
        (0.0, Vectors.sparse(4, [0], [0.0])),  # a stored zero
    ]
    frame = session.createDataFrame(rows, ["label", "features"]).coalesce(1)
    frame.write.format(FORMAT).mode("append").save(str(tmp_path / "out"))

    back = load(session, str(tmp_path / "out")).collect()

    assert [(row.label, row.features) for row in back] == rows
    assert [type(row.features) for row in back] == [
        SparseVector, DenseVector, SparseVector, SparseVector,
    ]  # fmt: skip
    (part,) = (tmp_path / "out").glob("part-*.pbr")
    X, y = read_records(part)
    assert y.tolist() == [1, 0, 1, 0]
    assert X.toarray().tolist()[0] == [0, 2, 0, 0.5]


@pytest.mark.parametrize("split_bytes", [1024, 5000, 2**25])
def test_splits_give_every_row_once(session, matrix, file, split_bytes):
    frame = load(session, str(file), splitBytes=split_bytes)

    assert dense_rows(frame) == dict(zip(matrix[1], matrix[0].toarray().tolist(), strict=True))
    assert frame.count() == 900


def test_payloads_that_hold_the_magic_and_whole_frames_are_split_right(session, tmp_path):
    rng = random.Random(3)
    records = [nasty_record(rng, width=8) for _ in range(400)]
    (tmp_path / "nasty.pbr").write_bytes(b"".join(map(framed, records)))

    whole, split = (
        sorted(
            (row.features[0], str(row.metadata))
            for row in load(session, str(tmp_path), splitBytes=size, includeMetadata="true")
            .select("features", "metadata")
            .collect()
        )
        for size in (2**25, 1024)
    )

    assert whole == split
    assert len(whole) == 400


def test_records_in_plainly_cut_parts_are_read_and_split(session, matrix, file, tmp_path):
    X, y = matrix
    frames = []
    for row in range(300):
        one = io.BytesIO()
        write_records(one, X[row : row + 1], y[row : row + 1])
        payload = one.getvalue()[8 : 8 + int.from_bytes(one.getvalue()[4:8], "little")]
        frames.append(cut(payload, row % 20, row % 20 + 7) if row % 2 else one.getvalue())
    (tmp_path / "parts.pbr").write_bytes(b"".join(frames))
    expected = dict(zip(y[:300], X[:300].toarray().tolist(), strict=True))

    for size in (1024, 2**25):
        assert dense_rows(load(session, str(tmp_path / "parts.pbr"), splitBytes=size)) == expected


@pytest.mark.connect
def test_files_are_found_like_spark_finds_them(session, matrix, file, tmp_path):
    X, y = matrix
    folder = tmp_path / "data"
    (folder / "_hidden").mkdir(parents=True)
    (folder / "sub").mkdir()
    for i, name in enumerate(["a.pbr", "b.pbr", "_c.pbr", ".d.pbr", "_hidden/e", "sub/f.pbr"]):
        write_records(folder / name, X[i : i + 1], y[i : i + 1])
    (folder / "empty.pbr").touch()
    (folder / "g.pbr.gz").write_bytes(gzip.compress((folder / "a.pbr").read_bytes()))
    manifest = tmp_path / "train.manifest"
    manifest.write_text(json.dumps([{"prefix": f"{folder}/"}, "b.pbr", "sub/f.pbr"]))

    def labels(*paths, **options):
        reader = session.read.format(FORMAT).options(**options)
        frame = reader.load(list(paths)) if len(paths) > 1 else reader.load(paths[0])
        return sorted(row.label for row in frame.select("label").collect())

    assert labels(str(folder)) == [0, 0, 1]
    assert labels(f"file://{folder}") == [0, 0, 1]
    assert labels(f"{folder}/[ab].pbr") == [0, 1]
    assert labels(f"{folder}/*") == [0, 0, 1, 5]
    assert labels(str(folder / "a.pbr"), str(folder / "b.pbr")) == [0, 1]
    assert labels(str(folder / "_c.pbr")) == [2]
    assert labels(str(folder), recursiveFileLookup="true") == [0, 0, 1, 5]
    assert labels(str(manifest)) == [1, 5]
    assert labels(str(folder / "empty.pbr")) == []
    for missing in (f"{folder}/nothing", f"{folder}/*.csv"):
        with pytest.raises(PySparkException, match="Path does not exist"):
            labels(missing)


def broken(path, matrix):
    """Ten records, the third no message, the seventh with a broken frame."""
    frames = []
    for i in range(10):
        one = path.with_name("one")
        write_records(one, matrix[0][i : i + 1], matrix[1][i : i + 1])
        frames.append(one.read_bytes())
        one.unlink()
    frames[2] = framed(b"\x0a\xff")
    frames[6] = b"\0\0\0\0" + frames[6][4:]
    path.write_bytes(b"".join(frames))
    return sum(map(len, frames[:2]))


@pytest.mark.connect
def test_the_modes_do_what_spark_users_know(session, matrix, tmp_path):
    path = tmp_path / "broken.pbr"
    offset = broken(path, matrix)

    with pytest.raises(PySparkException, match=rf"broken.pbr: record 2 at byte {offset}: not a R"):
        load(session, str(path)).collect()
    dropped = load(session, str(path), mode="dropmalformed").collect()
    assert [row.label for row in dropped] == [0, 1, 3, 4, 5, 7, 8, 9]
    kept = load(session, str(path), mode="PERMISSIVE").collect()
    assert [row.label for row in kept] == [0, 1, None, 3, 4, 5, None, 7, 8, 9]
    assert [row.features is None for row in kept] == [row.label is None for row in kept]
    assert "not a Record message" in kept[2]._corrupt_record
    assert "magic" in kept[6]._corrupt_record
    assert kept[3]._corrupt_record is None
    with pytest.raises(PySparkException, match="mode='LOOSE' is not one of FAILFAST"):
        load(session, str(path), mode="LOOSE").collect()


def test_a_file_without_any_record_is_malformed_in_every_mode(session, tmp_path):
    (tmp_path / "zeros.pbr").write_bytes(b"\0" * 100)

    assert load(session, str(tmp_path), mode="DROPMALFORMED").count() == 0
    (row,) = load(session, str(tmp_path), mode="PERMISSIVE").collect()
    assert (row.label, row.features) == (None, None)
    assert "record 0 at byte 0: expected the magic" in row._corrupt_record
    with pytest.raises(PySparkException, match="record 0 at byte 0: expected the magic"):
        load(session, str(tmp_path)).count()


def test_compressed_files_are_known_by_their_content_and_damage_is_told(session, file, tmp_path):
    packed = gzip.compress(file.read_bytes())
    (tmp_path / "a.pbr").write_bytes(packed)
    (tmp_path / "b.pbr.gz").write_bytes(packed[:-100])

    assert load(session, str(tmp_path / "a.pbr"), splitBytes=1024).count() == 900
    with pytest.raises(PySparkException, match=r"b.pbr.gz: record \d+ at byte \d+: the compressed"):
        load(session, str(tmp_path / "b.pbr.gz")).count()
    assert 0 < load(session, str(tmp_path / "b.pbr.gz"), mode="DROPMALFORMED").count() < 900


def test_records_that_say_no_width_need_feature_dim_in_every_mode(session, tmp_path):
    from spark_fm.formats.recordio.record_pb2 import Record

    record = Record()
    record.features["values"].float32_tensor.values.extend([1.0])
    record.features["values"].float32_tensor.keys.extend([3])
    (tmp_path / "a.pbr").write_bytes(framed(record.SerializeToString()) * 9)

    for mode in ("FAILFAST", "DROPMALFORMED", "PERMISSIVE"):
        with pytest.raises(PySparkException, match="None of the first 9 records says"):
            load(session, str(tmp_path), mode=mode).count()
    assert load(session, str(tmp_path), featureDim=4).count() == 9


def test_a_file_cut_off_in_a_record_is_malformed_not_short(session, file, tmp_path):
    (tmp_path / "cut.pbr").write_bytes(file.read_bytes()[:-6])

    with pytest.raises(PySparkException, match="the file ends inside a record"):
        load(session, str(tmp_path / "cut.pbr"), splitBytes=4096).count()
    assert load(session, str(tmp_path / "cut.pbr"), mode="DROPMALFORMED").count() == 899


def test_records_that_disagree_on_their_width_need_feature_dim(session, tmp_path):
    for name, width in (("a", 5), ("b", 7)):
        write_records(tmp_path / f"{name}.pbr", sp.csr_matrix(([2.0], ([0], [3])), (1, width)), [1])

    with pytest.raises(
        PySparkException,
        match=r"b.pbr: record 0 at byte 0: it has 7 features, others have featureDim=5",
    ):
        load(session, str(tmp_path)).collect()
    sizes = [row.features.size for row in load(session, str(tmp_path), featureDim=9).collect()]
    assert sizes == [9, 9]
    with pytest.raises(PySparkException, match="feature 3 is outside featureDim=2"):
        load(session, str(tmp_path), featureDim=2).collect()
    with pytest.raises(PySparkException, match="featureDim='0' is not a whole number"):
        load(session, str(tmp_path), featureDim=0).collect()


@pytest.mark.connect
def test_uid_metadata_and_file_name_come_when_asked_for(session, tmp_path):
    from spark_fm.formats.recordio.record_pb2 import Record

    record = Record(uid=b"u1", metadata=b'{"a": 1}')
    record.features["values"].float32_tensor.values.extend([1.0, 2.0])
    (tmp_path / "a.pbr").write_bytes(framed(record.SerializeToString()))

    (row,) = load(
        session, str(tmp_path), includeUid="true", includeMetadata="true", includeFileName="true"
    ).collect()

    assert (row.uid, row.metadata) == ("u1", '{"a": 1}')
    assert row.fileName == str(tmp_path / "a.pbr")
    assert row.label is None
    assert row.features == Vectors.dense([1.0, 2.0])


@pytest.mark.connect
def test_overwrite_and_append_leave_what_they_say(session, matrix, tmp_path):
    frame = to_frame(session, Rows(matrix[0], matrix[1]), 3)
    out = tmp_path / "out"
    counts = []
    for mode in ("append", "append", "overwrite"):
        frame.write.format(FORMAT).mode(mode).save(str(out))
        counts.append(load(session, str(out)).count())

    assert counts == [900, 1800, 900]
    assert {path.name[:5] for path in out.iterdir()} == {"part-", "_SUCC"}
    assert dense_rows(load(session, str(out))) == dense_rows(frame)


def failing_label(attempts: int):
    """Return a function of a label that fails in the task's first attempts."""

    def label(value):
        from pyspark import TaskContext

        if value == 700 and TaskContext.get().attemptNumber() < attempts:
            raise RuntimeError("lost")
        return value

    return F.udf(label, DoubleType())


@pytest.mark.connect
def test_a_retried_task_leaves_no_duplicate_and_a_failed_job_nothing(session, matrix, tmp_path):
    frame = to_frame(session, Rows(matrix[0], matrix[1]), 3)
    out = tmp_path / "out"
    retried = frame.withColumn("label", failing_label(1)("label"))
    retried.write.format(FORMAT).mode("append").save(str(out))
    assert load(session, str(out)).count() == 900

    failed = frame.withColumn("label", failing_label(99)("label"))
    with pytest.raises(PySparkException):
        failed.write.format(FORMAT).mode("append").save(str(out))
    assert load(session, str(out)).count() == 900
    # A task that was still running when the job was given up may leave hidden files.
    assert len([path for path in out.iterdir() if not path.name.startswith("_")]) == 3


BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"


@contextmanager
def setting(session, name, value):
    before = session.conf.get(name, None)
    session.conf.set(name, value)
    try:
        yield
    finally:
        if before is None:  # PySpark 4.0 does not know it
            session.conf.unset(name)
        else:
            session.conf.set(name, before)


@pytest.mark.connect
@pytest.mark.parametrize("limit", [0, -1, -4])  # the last is how PySpark ends its messages
def test_batches_without_a_limit_are_written_and_read(session, tmp_path, limit):
    frame = session.createDataFrame([(1.0, [1.0]), (0.0, [2.0])], ["label", "features"])
    with setting(session, BATCH, limit):
        frame.write.format(FORMAT).mode("append").save(str(tmp_path))

        assert dense_rows(load(session, str(tmp_path))) == {1.0: [1.0], 0.0: [2.0]}
        with setting(session, "spark.sql.python.filterPushdown.enabled", "true"):
            assert load(session, str(tmp_path)).filter("label > 0").count() == 1


def test_vectors_of_the_older_library_are_written(session, tmp_path):
    rows = [(1.0, MLlibVectors.dense([1.0, 2.0]))]
    frame = session.createDataFrame(rows, ["label", "features"])
    frame.write.format(FORMAT).mode("append").save(str(tmp_path))

    assert dense_rows(load(session, str(tmp_path))) == {1.0: [1.0, 2.0]}


@pytest.mark.parametrize("names", [("Label", "features"), ("LABEL", "Features")])
def test_labels_and_features_are_found_whatever_their_case(session, tmp_path, names):
    frame = session.createDataFrame([(1.0, [1.0, 2.0])], list(names))
    frame.write.format(FORMAT).mode("append").save(str(tmp_path))

    assert dense_rows(load(session, str(tmp_path))) == {1.0: [1.0, 2.0]}


def test_no_label_is_lost_where_case_counts(session, tmp_path):
    rows = session.createDataFrame([(1.0, 7.0, [1.0])], ["label", "second", "features"])

    def save(frame, **options):
        frame.write.format(FORMAT).options(**options).mode("overwrite").save(str(tmp_path))
        return load(session, str(tmp_path)).first().label

    with setting(session, "spark.sql.caseSensitive", "true"):
        both = rows.withColumnRenamed("second", "Label")
        assert save(both) == 1.0
        assert save(both, labelCol="Label") == 7.0
        with pytest.raises(PySparkException, match="'LABEL' could be any of the columns label, L"):
            save(both, labelCol="LABEL")
        other = both.drop("label")
        assert save(other, labelCol="Label") == 7.0
        with pytest.raises(PySparkException, match="labelCol='label' is not a column, as"):
            save(other)
        with pytest.raises(PySparkException, match="featuresCol='Features' is not a column, as"):
            save(both, featuresCol="Features")


def test_labels_of_true_and_false_are_1_and_0(session, tmp_path):
    frame = session.createDataFrame([(True, [1.0]), (False, [2.0])], ["label", "features"])
    frame.write.format(FORMAT).mode("append").save(str(tmp_path))

    assert dense_rows(load(session, str(tmp_path))) == {1.0: [1.0], 0.0: [2.0]}


@pytest.mark.connect
def test_a_schema_chooses_columns_and_other_types_are_refused_before_the_job(session, tmp_path):
    write_records(tmp_path / "a.pbr", [[1.0, 2.0]], [3])
    write_records(tmp_path / "b.pbr", [[1.0, 2.0]])

    def read(schema, name="a.pbr"):
        return session.read.format(FORMAT).schema(schema).load(str(tmp_path / name)).collect()

    strict = StructType([
        StructField("FEATURES", VectorUDT(), False), StructField("label", DoubleType(), False)
    ])  # fmt: skip
    assert read(strict) == [Row(FEATURES=Vectors.dense([1.0, 2.0]), label=3.0)]
    assert read("label double") == [Row(label=3.0)]
    for wrong in ("label float", "label double, features array<double>", "rating double"):
        with pytest.raises(PySparkException, match="has the columns struct<label:double,features"):
            read(wrong)
    with pytest.raises(PySparkException, match="label is null in a record, but the schema"):
        read(strict, "b.pbr")


def test_files_are_compressed_when_asked_for(session, matrix, tmp_path):
    frame = to_frame(session, Rows(*matrix), 2)
    for codec in ("gzip", "none"):
        frame.write.format(FORMAT).option("compression", codec).mode("append").save(str(tmp_path))
    names = sorted(path.suffix for path in tmp_path.glob("part-*"))

    assert names == [".gz", ".gz", ".pbr", ".pbr"]
    for part in tmp_path.glob("*.gz"):
        assert part.read_bytes()[:2] == b"\x1f\x8b"
        assert (
            dense_rows(load(session, str(part), compression="gzip")).items()
            <= dense_rows(frame).items()
        )
    assert load(session, str(tmp_path)).count() == 1800
    with pytest.raises(PySparkException, match="compression='snappy' is not one of none, uncompre"):
        frame.write.format(FORMAT).option("compression", "snappy").mode("append").save("/nowhere")


def test_the_name_and_options_of_the_aws_source_are_taken(session, tmp_path):
    frame = session.createDataFrame([(1, [1.0, 0.0])], ["y", "v"])
    frame.write.format("sagemaker").options(labelColumnName="y", featuresColumnName="v").mode(
        "append"
    ).save(str(tmp_path))

    reader = session.read.format("sagemaker").option("numFeatures", "2")
    assert dense_rows(reader.load(str(tmp_path))) == {1.0: [1.0, 0.0]}
    with pytest.raises(PySparkException, match="numFeatures='3' are one option and contradict"):
        load(session, str(tmp_path), featureDim=2, numFeatures=3).collect()


def test_globs_find_what_they_find_for_sparks_own_formats(session, tmp_path):
    for name in ("a1/x", "a2/y", "b/x", "b/x[1]", "b/_y", "{c}/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_records(tmp_path / name, [[1.0]], [1])
    globs = (
        "{a1,b}",
        "{a{1,2},b}/x",
        "[^a]/x",
        "[b-z]/*",
        "b/x\\[1\\]",
        "a?/{x,y}",
        "\\{c\\}/x",
        "*/x*",
    )
    for glob in globs:
        path = f"{tmp_path}/{glob}"
        theirs = session.read.format("binaryFile").load(path).select("path").collect()
        ours = load(session, path, includeFileName="true").select("fileName").collect()
        assert sorted(row.fileName for row in ours) == sorted(
            unquote(row.path.removeprefix("file:")) for row in theirs
        ), glob
    (tmp_path / "b" / "deep").mkdir()
    write_records(tmp_path / "b" / "deep" / "x", [[1.0]], [1])
    assert load(session, f"{tmp_path}/**/x").count() == 4
    assert load(session, f"{tmp_path}/b/**").count() == 3
    assert load(session, str(tmp_path), recursiveFileLookup=True, pathGlobFilter="x*").count() == 5


@pytest.mark.connect
def test_wrong_columns_and_numbers_are_named(session, tmp_path):
    frame = session.createDataFrame([(1.0, Vectors.dense([1e300]), "x")], ["y", "v", "text"])

    def save(**options):
        frame.write.format(FORMAT).options(**options).mode("append").save(str(tmp_path / "out"))

    for options, text in (
        ({}, "featuresCol='features' is not a column; there are y, v, text"),
        ({"featuresCol": "text"}, "featuresCol='text' has type string"),
        ({"featuresCol": "v", "labelCol": "z"}, "labelCol='z' is not a column"),
        ({"featuresCol": "v", "labelCol": "text"}, "labelCol='text' has type string"),
        ({"featuresCol": "v"}, "too large for float32"),
    ):
        with pytest.raises(PySparkException, match=text):
            save(**options)


@pytest.mark.connect
def test_training_from_records_gives_the_model_of_the_same_rows(session, matrix, tmp_path):
    X, _ = matrix
    y = (np.asarray(X.sum(1)).ravel() > 2.5).astype(np.float32)
    frame = to_frame(session, Rows(X, y), 1)
    write_records(tmp_path / "rows.pbr", X, y)
    rates = dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.2)
    machine = spark_fm.FactorizationMachine(numFactors=4, epochs=2, seed=1, **rates)

    direct, read = (
        machine.fit(rows) for rows in (frame, load(session, str(tmp_path / "rows.pbr")))
    )

    assert direct.bias == read.bias
    np.testing.assert_array_equal(direct.weights.table, read.weights.table)
    scores = read.transform(load(session, str(tmp_path / "rows.pbr"))).select("score").collect()
    np.testing.assert_allclose([row.score for row in scores], read.predict(X), rtol=1e-6)


def test_the_modules_that_spark_discovers_never_raise():
    script = """
import sys
import pyspark_recordio_protobuf as found, pyspark_sagemaker as by_the_name_of_aws
assert found.DefaultSource.name() == "recordio-protobuf"
assert by_the_name_of_aws.DefaultSource.name() == "sagemaker"
assert not {"numba", "pandas", "scipy"} & set(sys.modules), "not light"
del sys.modules["pyspark_recordio_protobuf"], sys.modules["pyspark_sagemaker"]
sys.modules["spark_fm.datasource.recordio"] = None  # importing it fails now
import pyspark_recordio_protobuf as found, pyspark_sagemaker as by_the_name_of_aws
assert not hasattr(found, "DefaultSource")
assert not hasattr(by_the_name_of_aws, "DefaultSource")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
