"""Text models of libFM are read, and what is written comes back bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spark_fm.errors import InvalidDataError, InvalidParamError, ModelFormatError
from spark_fm.formats.models.libfm import read_libfm, write_libfm
from spark_fm.formats.models.native import imported_model
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "libfm"
REGRESSOR = (GOLDEN / "regressor.model").read_text()


def dense_rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    lines = [line.split() for line in path.read_text().splitlines()]
    X = np.zeros((len(lines), 12))
    for r, (_, *entries) in enumerate(lines):
        for entry in entries:
            j, x = entry.split(":")
            X[r, int(j)] = float(x)
    return X, np.array([float(line[0]) for line in lines])


def read(path: Path, text: str) -> FMWeights:
    path.write_text(text)
    return read_libfm(str(path), predictor_type="regressor").weights


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_what_libfm_trained_scores_as_libfm_printed(kind: str) -> None:
    X, y = dense_rows(GOLDEN / f"{kind}.rows")
    task = {"classifier": "binary_classifier"}.get(kind, kind)

    model = read_libfm(str(GOLDEN / f"{kind}.model"), predictor_type=task)

    scores = model.predict(CsrBatch.from_matrix(X))
    if kind == "regressor":
        scores = np.clip(scores, y.min(), y.max())  # as libFM does with its predictions
    expected = np.loadtxt(GOLDEN / f"{kind}.scores")
    assert np.ptp(expected) > 0.3
    assert scores == pytest.approx(expected, abs=2e-5)  # libFM writes six digits
    assert model.params["predictorType"] == task


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bias=st.floats(allow_nan=False, allow_infinity=False),
    table=hnp.arrays("f4", st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=floats),
)
def test_written_digits_give_the_same_numbers_back(
    tmp_path: Path, bias: float, table: np.ndarray
) -> None:
    path = str(tmp_path / "model")
    model = imported_model(
        FMWeights(bias, table, len(table)), "regressor", threshold=0.5, origin={}
    )

    write_libfm(path, model)
    found = read_libfm(path, predictor_type="regressor").weights

    assert found.bias.hex() == bias.hex()
    assert found.table.tobytes() == table.tobytes()
    text = Path(path).read_text()
    assert text.count("\n") == 4 + 2 * len(table)
    for number in text.split("\n")[3].split():  # C's atof and a rounding give the same
        assert np.float32(float(number)) == table[0, -1]


def test_any_bits_of_float32_are_written_and_read(tmp_path: Path) -> None:
    bits = np.random.default_rng(4).integers(0, 2**32, 100_000).astype(np.uint32)
    numbers = bits.view(np.float32)
    table = numbers[np.isfinite(numbers)][:90_000].reshape(-1, 3) / np.float32(1e6)
    weights = FMWeights(0.0, table, len(table))

    write_libfm(str(tmp_path / "m"), imported_model(weights, "regressor", threshold=0, origin={}))
    found = read_libfm(str(tmp_path / "m"), predictor_type="regressor").weights

    assert found.table.tobytes() == table.tobytes()


def test_features_without_a_row_are_zeros(tmp_path: Path) -> None:
    ids = np.array([2, 70_000, 70_001], np.int32)
    seen = FMWeights(0.5, planted_weights(3, 2, seed=3).table, 70_003, ids)

    write_libfm(str(tmp_path / "m"), imported_model(seen, "regressor", threshold=0.5, origin={}))
    found = read_libfm(str(tmp_path / "m"), predictor_type="regressor").weights

    assert np.array_equal(found.table[ids], seen.table)
    assert np.count_nonzero(found.table.any(axis=1)) == 3


def test_models_without_bias_linear_weights_or_factors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    unary, pairs = "#unary interactions Wj\n1\n2\n", "#pairwise interactions Vj,f\n"

    assert read(path, f"{pairs}1 2\n3 4\n").table.tolist() == [[1, 2, 0], [3, 4, 0]]
    assert read(path, f"{unary}{pairs}5\n6\n").table.tolist() == [[5, 1], [6, 2]]
    assert read(path, f"#global bias W0\n3\n{unary}{pairs}\n\n").table.tolist() == [[0, 1], [0, 2]]
    windows = f"#global bias W0\n3\n{unary}{pairs}5\n6".replace("\n", "\r\n")
    assert read(path, windows).table.tolist() == [[5, 1], [6, 2]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#global bias W0\n", "", "is no text model of libFM"),
        ("#unary interactions Wj", "#unary", "line 3 is '#unary'"),
        ("#unary interactions Wj", "#global bias W0", "line 3 is '#global bias W0'"),
        ("#pairwise interactions Vj,f\n", "", "has no section '#pairwise"),
        ("0.18844\n", "", "line 2 is damaged: expected one number"),
        ("0.18844", "0.1 0.2", "expected one number"),
        ("0.18844", "nan", "has the bias nan"),
        ("-0.604402\n", "", "has 11 linear weights, and factors of 12"),
        ("-0.604402", "x", "from line 4 is damaged: .*Row #2.*invalid value 'x'"),
        ("-0.604402", "inf", "NaN or infinite parameter of feature 1"),
        ("-0.168582 ", "", "from line 17 is damaged: .*Expected 2 columns, got 3"),
        ("-0.579645 ", "", "Row #2: Expected 3 columns, got 2"),
    ],
)
def test_broken_models_are_refused_with_the_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in REGRESSOR
    with pytest.raises(ModelFormatError, match=message) as caught:
        read(tmp_path / "m", REGRESSOR.replace(old, new, 1))
    assert str(tmp_path / "m") in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4), st.integers(0, 700)
)
def test_cut_and_changed_models_are_read_or_refused(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(REGRESSOR.encode())
    for at, value in changes:
        data[at % len(data)] = value
    (tmp_path / "m").write_bytes(data[:length])

    try:
        found = read_libfm(str(tmp_path / "m"), predictor_type="regressor")
    except ModelFormatError:
        return
    assert np.isfinite(found.weights.table).all()


def test_too_many_features_and_no_file_are_refused(tmp_path: Path) -> None:
    ids = np.array([2, 7, 2**31 - 2], np.int32)
    huge = FMWeights(0.5, planted_weights(3, 2, seed=3).table, 2**31 - 1, ids)

    with pytest.raises(InvalidParamError, match="lists all 2,147,483,647 features"):
        write_libfm(str(tmp_path / "m"), imported_model(huge, "regressor", threshold=0, origin={}))
    with pytest.raises(InvalidDataError, match="cannot be opened"):
        read_libfm(str(tmp_path / "m"), predictor_type="regressor")
    with pytest.raises(InvalidDataError, match="is no file"):
        read_libfm(str(tmp_path), predictor_type="regressor")
    assert os.listdir(tmp_path) == []
