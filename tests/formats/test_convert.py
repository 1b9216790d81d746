"""Files of every format to every other, without Spark."""

from __future__ import annotations

import gzip
import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_fm.cli.main import main
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError
from spark_fm.formats.convert import FORMATS, Conversion, convert, format_of
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.recordio import read_batches, read_records, write_records

ENDING = {"libsvm": "libsvm", "libfm": "libfm", "parquet": "parquet", "npz": "npz", RECORDIO: "pbr"}


@pytest.fixture
def matrix():
    """500 rows of 40 features, some empty, the last feature used."""
    X = sp.random_array((500, 40), density=0.1, rng=np.random.default_rng(3), dtype=np.float32)
    X = X.tolil()
    X[7] = 0
    X[8, 39] = 0.1
    return X.tocsr()


@pytest.fixture
def labels():
    return np.random.default_rng(4).normal(size=500).astype(np.float32)


@pytest.fixture
def source(tmp_path, matrix, labels):
    """Return the path of a file of a format with the matrix."""
    write_records(tmp_path / "first.pbr", matrix, labels)

    def written(kind):
        path = str(tmp_path / f"source.{ENDING[kind]}")
        convert(Conversion((str(tmp_path / "first.pbr"),), path))
        return path

    return written


def rows_of(path, **settings):
    """Read any file through a conversion to recordIO and the reader of that."""
    through = path + ".check.pbr"
    convert(Conversion((path,), through, **settings))
    return read_records(through)


def same(found, expected):
    assert found.shape == expected.shape
    assert (found != sp.csr_array(expected)).nnz == 0


@pytest.mark.parametrize(("before", "after"), [*itertools.product(FORMATS, FORMATS)])
def test_every_format_becomes_every_other_and_keeps_its_rows(
    before, after, source, tmp_path, matrix, labels
):
    target = str(tmp_path / f"target.{ENDING[after]}")

    done = convert(Conversion((source(before),), target))

    X, y = rows_of(target)
    same(X, matrix)
    np.testing.assert_array_equal(y, labels)
    assert (done.n_rows, done.n_entries, done.width) == (500, matrix.nnz, 40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_survive_text_to_the_last_bit(data, tmp_path):
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    rows = data.draw(
        st.lists(
            st.tuples(numbers, st.dictionaries(st.integers(0, 2**31 - 2), numbers, max_size=5)),
            min_size=1,
        )
    )
    kind = data.draw(st.sampled_from(["libsvm", "libfm"]))
    X = sp.csr_array(
        (
            np.array([v for _, row in rows for _, v in sorted(row.items())], np.float32),
            np.array([j for _, row in rows for j in sorted(row)], np.int64),
            np.cumsum([0] + [len(row) for _, row in rows]),
        ),
        shape=(len(rows), 2**31 - 1),
    )
    write_records(tmp_path / "a.pbr", X, [label for label, _ in rows])

    convert(Conversion((str(tmp_path / "a.pbr"),), str(tmp_path / "a.txt"), output_format=kind))
    convert(
        Conversion(
            (str(tmp_path / "a.txt"),), str(tmp_path / "b.pbr"),
            input_format=kind, num_features=2**31 - 1,
        )
    )  # fmt: skip

    assert (tmp_path / "a.pbr").read_bytes() == (tmp_path / "b.pbr").read_bytes()


def test_float64_text_keeps_its_digits_where_the_target_can(tmp_path):
    (tmp_path / "a.libsvm").write_text("0.1 1:0.30000000000000004\n1 2:1e300\n")

    convert(Conversion((str(tmp_path / "a.libsvm"),), str(tmp_path / "a.npz")))

    X = sp.load_npz(tmp_path / "a.npz")
    assert X.data.tolist() == [0.30000000000000004, 1e300]
    assert np.load(tmp_path / "a.npz")["y"].tolist() == [0.1, 1.0]


def test_files_of_scipy_of_any_sparse_format_are_read(tmp_path, matrix):
    for make in (sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array):
        sp.save_npz(tmp_path / "a.npz", make(matrix))
        X, y = rows_of(str(tmp_path / "a.npz"))
        same(X, matrix)
        assert np.isnan(y).all()
        (tmp_path / "a.npz.check.pbr").unlink()


def test_scipy_reads_what_is_written_with_the_labels_beside(source, matrix, labels):
    path = source("npz")

    X = sp.load_npz(path)

    same(X, matrix)
    assert X.dtype == np.float32
    np.testing.assert_array_equal(np.load(path)["y"], labels)


def test_many_rows_of_npz_are_cut_into_batches(tmp_path, monkeypatch, matrix):
    monkeypatch.setattr("spark_fm.formats.npz.BATCH_ROWS", 11)
    sp.save_npz(tmp_path / "a.npz", sp.csr_matrix(matrix))

    X, _ = rows_of(str(tmp_path / "a.npz"))

    same(X, matrix)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"indices": np.array([0, 9], np.int32)}, "outside 0 to 3"),
        ({"indptr": np.array([0, 2, 1], np.int32)}, "does not rise"),
        ({"indptr": np.array([0, 1, 9], np.int32)}, "ends after the data"),
        ({"indptr": np.array([0, 2], np.int32)}, "do not fit together"),
        ({"indptr": np.array([1, 1, 2], np.int32)}, "starts at 1"),
        ({"y": np.zeros(5)}, r"^\S+ has 5 labels"),
        ({"data": np.array(["a", "b"])}, "type"),
        ({"shape": np.array([2, 0])}, "0 columns"),
        ({"format": np.array([object()], object)}, "pickle"),
    ],
)
def test_a_broken_npz_is_told_with_its_reason(tmp_path, change, reason):
    good = {
        "format": np.array(b"csr"), "shape": np.array([2, 4]),
        "indptr": np.array([0, 1, 2], np.int32), "indices": np.array([0, 3], np.int32),
        "data": np.ones(2),
    }  # fmt: skip
    np.savez(tmp_path / "a.npz", **(good | change))

    with pytest.raises(InvalidDataError, match=reason):
        convert(Conversion((str(tmp_path / "a.npz"),), str(tmp_path / "a.pbr")))

    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("content", [b"text", b"\x93NUMPY\x01\x00", b"\x80\x04N."])
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)

    with pytest.raises(InvalidDataError, match=r"a\.npz is no file of scipy\.sparse\.save_npz"):
        convert(Conversion((str(tmp_path / "a.npz"),), str(tmp_path / "a.pbr")))


def test_an_index_outside_another_sparse_format_is_refused(tmp_path):
    X = sp.csc_matrix(np.eye(3))
    X.indices[1] = 100_000
    sp.save_npz(tmp_path / "a.npz", X)

    with pytest.raises(InvalidDataError, match="ind"):
        convert(Conversion((str(tmp_path / "a.npz"),), str(tmp_path / "a.pbr")))


def test_damaged_input_of_every_kind_names_the_file(source, tmp_path):
    path = Path(source("libsvm"))
    gz = tmp_path / "cut.libsvm.gz"
    gz.write_bytes(gzip.compress(path.read_bytes())[:-50])
    npz = tmp_path / "broken.npz"
    sp.save_npz(npz, sp.load_npz(source("npz")))
    content = bytearray(npz.read_bytes())
    content[200:400] = b"?" * 200
    npz.write_bytes(content)
    parquet = Path(source("parquet"))
    content = bytearray(parquet.read_bytes())
    content[10:400] = b"?" * 390
    parquet.write_bytes(content)

    for broken in (gz, npz, parquet):
        with pytest.raises(InvalidDataError, match=broken.name):
            convert(Conversion((str(broken),), str(tmp_path / "out.pbr"), num_features=40))
    assert not (tmp_path / "out.pbr").exists()


def test_dense_rows_stay_dense_where_the_format_can_say_so(tmp_path):
    X = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]], np.float32)
    write_records(tmp_path / "a.pbr", X, [1, 0])

    convert(Conversion((str(tmp_path / "a.pbr"),), str(tmp_path / "a.parquet")))
    convert(Conversion((str(tmp_path / "a.parquet"),), str(tmp_path / "b.pbr")))
    convert(Conversion((str(tmp_path / "a.pbr"),), str(tmp_path / "a.libfm")))

    assert (tmp_path / "a.pbr").read_bytes() == (tmp_path / "b.pbr").read_bytes()
    assert (tmp_path / "a.libfm").read_text() == "1 1:2\n0 0:1 2:3\n"


def test_lists_of_floats_in_parquet_are_dense_rows(tmp_path):
    table = pa.table({"x": [[0.5, 0.0], [1.0, 2.0]], "y": [1, 0]})
    pq.write_table(table, tmp_path / "a.parquet")

    X, y = rows_of(str(tmp_path / "a.parquet"), features_col="x", label_col="y")

    assert X.toarray().tolist() == [[0.5, 0.0], [1.0, 2.0]]
    assert y.tolist() == [1.0, 0.0]


def test_rows_without_a_label_stay_so_or_get_the_number_asked_for(tmp_path):
    with open(tmp_path / "a.pbr", "wb") as out:
        write_records(out, sp.csr_array([[0.0, 1.0]]), [1])
        write_records(out, sp.csr_array([[2.0, 0.0], [0.0, 0.0]]))
        write_records(out, sp.csr_array([[0.0, 4.0]]), [0])
    here = (str(tmp_path / "a.pbr"),)

    convert(Conversion(here, str(tmp_path / "a.parquet")))
    convert(Conversion((str(tmp_path / "a.parquet"),), str(tmp_path / "b.pbr")))
    convert(Conversion(here, str(tmp_path / "a.libsvm"), missing_label=7))

    assert (tmp_path / "a.pbr").read_bytes() == (tmp_path / "b.pbr").read_bytes()
    assert (tmp_path / "a.libsvm").read_text() == "1 2:1\n7 1:2\n7\n0 2:4\n"
    with pytest.raises(InvalidDataError, match=r"Row 1 has no label.*--missing-label"):
        convert(Conversion(here, str(tmp_path / "b.libsvm")))
    assert not (tmp_path / "b.libsvm").exists()


@pytest.mark.parametrize("chunk_bytes", [1, 3, 17, 2**20])
def test_lines_are_the_same_whatever_the_chunks(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(
        "spark_fm.formats.text.read_text.__kwdefaults__", {"chunk_bytes": chunk_bytes}
    )
    (tmp_path / "a.libsvm").write_bytes(b"1 1:2 3:4\r\n\n-1\n# nothing\n0 2:1 2:2 1:5")

    X, y = rows_of(str(tmp_path / "a.libsvm"))

    assert X.toarray().tolist() == [[2, 0, 4], [0, 0, 0], [5, 3, 0]]
    assert y.tolist() == [1, -1, 0]


def test_a_bad_line_is_named_by_number_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "a.libsvm").write_text("1 1:2\n\n1 2:x\n")

    with pytest.raises(InvalidDataError, match=r"a\.libsvm: line 3, '1 2:x': .*not a number"):
        convert(Conversion((str(tmp_path / "a.libsvm"),), str(tmp_path / "a.pbr"), num_features=2))

    assert os.listdir(tmp_path) == ["a.libsvm"]


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("spark_fm.formats.text.MAX_LINE_BYTES", 2**22)
    (tmp_path / "a.libsvm").write_bytes(b"1" * 2**24)

    with pytest.raises(InvalidDataError, match="line 1 has more than"):
        convert(Conversion((str(tmp_path / "a.libsvm"),), str(tmp_path / "a.pbr")))


def test_several_files_follow_each_other_and_must_agree_on_the_width(tmp_path):
    for name, width in (("a", 3), ("b", 3), ("c", 4)):
        write_records(tmp_path / f"{name}.pbr", sp.csr_array(([1.0], ([0], [1])), shape=(1, width)))
    paths = [str(tmp_path / f"{name}.pbr") for name in "abc"]

    assert convert(Conversion(tuple(paths[:2]), str(tmp_path / "ab.npz"))).n_rows == 2
    with pytest.raises(InvalidDataError, match="Row 2 has 4 features, where 3 were found"):
        convert(Conversion(tuple(paths), str(tmp_path / "abc.parquet")))
    assert convert(Conversion(tuple(paths), str(tmp_path / "d.pbr"), num_features=9)).width == 9
    with pytest.raises(InvalidDataError, match="has 3 features, where 1 were asked for"):
        convert(Conversion(tuple(paths), str(tmp_path / "e.pbr"), num_features=1))


def test_numbers_that_float32_cannot_hold_are_refused_by_row(tmp_path):
    (tmp_path / "a.libfm").write_text("1 0:1\n1 3:1e300\n")

    with pytest.raises(InvalidDataError, match=r"Row 1, feature 3 is 1e\+300"):
        convert(Conversion((str(tmp_path / "a.libfm"),), str(tmp_path / "a.pbr")))


def test_names_ending_in_gz_are_compressed_and_the_same_each_time(source, tmp_path):
    path = source("libsvm")
    for name in ("a", "b"):
        convert(Conversion((path,), str(tmp_path / f"{name}.pbr.gz")))

    packed = (tmp_path / "a.pbr.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "first.pbr").read_bytes()
    assert packed == (tmp_path / "b.pbr.gz").read_bytes()
    with pytest.raises(InvalidParamError, match="compress by themselves"):
        convert(Conversion((path,), str(tmp_path / "a.npz.gz")))


def test_a_named_pipe_is_read_once_with_the_width_that_is_given(tmp_path, source, matrix):
    lines = Path(source("libsvm")).read_bytes()
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    job = Conversion((pipe,), str(tmp_path / "a.pbr"), input_format="libsvm")
    with pytest.raises(InvalidParamError, match="--num-features"):
        convert(job)
    feeder = threading.Thread(target=Path(pipe).write_bytes, args=[lines])
    feeder.start()

    convert(Conversion(job.inputs, job.output, input_format="libsvm", num_features=40))

    feeder.join()
    same(read_records(tmp_path / "a.pbr")[0], matrix)
    with pytest.raises(InvalidParamError, match="cannot be read from a pipe"):
        convert(Conversion((pipe,), str(tmp_path / "b.pbr"), input_format="npz"))


def test_the_listener_hears_of_every_pass_up_to_the_whole(source, tmp_path):
    heard = []

    convert(
        Conversion((source("libsvm"),), str(tmp_path / "a.pbr")), lambda *told: heard.append(told)
    )

    size = os.path.getsize(source("libsvm"))
    last = {what: (done, total) for what, done, total in heard}
    assert last == {"counting features": (size, size), "converting": (size, size)}


def test_columns_of_parquet_are_found_whatever_their_case(tmp_path):
    table = pa.table({"Label": [True, False], "FEATURES": pa.array([[1.0, 2.0], [3.0, 4.0]])})
    source, target = tmp_path / "in.parquet", tmp_path / "out.pbr"
    pq.write_table(table, source)
    convert(Conversion((str(source),), str(target)))

    assert read_records(target)[1].tolist() == [1, 0]
    pq.write_table(table.append_column("LABEL", [[3.0, 4.0]]), source)
    with pytest.raises(InvalidColumnError, match="could be any of the columns Label, LABEL"):
        convert(Conversion((str(source),), str(target)))


def test_columns_of_parquet_that_do_not_fit_are_named(tmp_path):
    pq.write_table(pa.table({"features": ["a"], "label": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [[1.0]], "label": ["b"]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"nothing of the kind")

    def to_records(name, **settings):
        convert(Conversion((str(tmp_path / name),), str(tmp_path / "out.pbr"), **settings))

    with pytest.raises(InvalidColumnError, match="'features' has type string"):
        to_records("a.parquet")
    with pytest.raises(InvalidColumnError, match="no column 'features' of features; there are x"):
        to_records("b.parquet")
    with pytest.raises(InvalidColumnError, match="'label' has type string"):
        to_records("b.parquet", features_col="x")
    with pytest.raises(InvalidDataError, match="no Parquet file"):
        to_records("c.parquet")


def test_formats_are_told_by_names():
    names = ["a.libsvm.gz", "b.svm", "c.LIBFM", "d.parquet", "e.npz", "f.pbr", "g.rec.gz", "h.txt"]

    found = [format_of(name) for name in names]

    assert found == ["libsvm", "libsvm", "libfm", "parquet", "npz", RECORDIO, RECORDIO, None]


def test_mixed_labels_survive_a_batch(tmp_path):
    with open(tmp_path / "a.pbr", "wb") as out:
        write_records(out, sp.csr_array([[1.0]]))
        write_records(out, sp.csr_array([[2.0]]), [3])

    (batch,) = read_batches(tmp_path / "a.pbr")

    np.testing.assert_array_equal(batch.labels, [np.nan, 3])


def test_a_format_that_no_name_tells_is_asked_for_by_its_flag(source, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("1 1:2\n")

    with pytest.raises(InvalidParamError, match=r"plain does not show .* with --format\."):
        convert(Conversion((str(plain),), str(tmp_path / "a.npz")))
    with pytest.raises(InvalidParamError, match=r"out does not show .* with --output-format\."):
        convert(Conversion((source("libsvm"),), str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("name", "reader"),
    [("a.csv", "csv(path"), ("a.CSV.gz", "csv(path"), ("a.tsv", "csv(path"),
     ("a.json", "json(path"), ("a.jsonl", "json(path"), ("a.ndjson.gz", "json(path")],
)  # fmt: skip
def test_tables_are_refused_in_one_step_with_what_to_do(source, tmp_path, name, reader):
    table = tmp_path / name
    table.write_bytes(b"label,a\n1,2\n")

    with pytest.raises(InvalidParamError, match=r"is not read: .*FeatureHasher") as told:
        convert(Conversion((str(table),), str(tmp_path / "a.npz")))
    assert f"spark.read.{reader}" in str(told.value)
    with pytest.raises(InvalidParamError, match="is not written: convert writes libsvm"):
        convert(Conversion((source("libsvm"),), str(tmp_path / f"out-{name}")))


@pytest.mark.parametrize("command", ["convert", "train", "evaluate", "score"])
def test_tables_are_no_format_of_any_command(command, capsys):
    assert main([command, "--format", "csv", "--input", "a"]) == 2

    told = capsys.readouterr().err
    assert "csv is not read: CSV does not say which feature a column is." in told
    assert told.count("\n") == 1


@pytest.mark.spark
def test_the_documented_way_from_a_table_ends_in_what_convert_reads(spark, tmp_path):
    (tmp_path / "rows.csv").write_text("label,user,price\n1,ann,2.5\n0,bob,1\n")
    text = (Path(__file__).parents[2] / "docs" / "recordio.md").read_text()
    code = text[text.index("from pyspark.ml.feature") :].split("```")[0]

    exec(code.replace('"rows', f'"{tmp_path}/rows'), {"spark": spark})

    done = convert(Conversion((str(tmp_path / "rows.parquet"),), str(tmp_path / "rows.pbr"),
                              input_format="parquet"))  # fmt: skip
    assert (done.n_rows, done.n_entries, done.width) == (2, 4, 2**18)


def test_the_listener_counts_the_bytes_of_all_inputs(source, tmp_path):
    heard = []
    inputs = (source("libsvm"), source("recordio-protobuf"), source("libsvm"))

    convert(Conversion(inputs, str(tmp_path / "a.npz")), lambda *told: heard.append(told))

    total = sum(map(os.path.getsize, inputs))
    done = [done for _, done, _ in heard]
    assert done == sorted(done)
    assert heard[-1] == ("converting", total, total)
    assert {os.path.getsize(inputs[0]), total} <= set(done)
