"""A model as text gives the same scores, bit for bit, and a text that was cut is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.native import SavedModel, imported_model
from spark_fm.formats.models.text import read_text, write_text
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights, random_batch

TABLE = np.array([[0.1, -2.5, 1e-30], [0.0, 3e20, 0.3]], np.float32)
TEXT = """\
# spark_fm model text 1
# score(x) = bias + sum of w_i x_i + sum over i < j of <v_i, v_j> x_i x_j
# A binary_classifier's score is 1 / (1 + exp(-that)); its label is 1 from the threshold on.
# Features without a line add nothing. All but the bias and the threshold are float32.
predictor_type binary_classifier
threshold 0.25
feature_dim 9
num_factors 2
features 2
bias 0.30000000000000004
id w v1 v2
4 1e-30 0.1 -2.5
8 0.3 0 3e+20
end
"""


def model_of(weights: FMWeights, kind: str = "binary_classifier") -> SavedModel:
    return imported_model(weights, kind, threshold=0.25, origin={})


SEEN = model_of(FMWeights(0.1 + 0.2, TABLE, 9, np.array([4, 8], np.int32)))


def test_the_text_is_this(tmp_path: Path) -> None:
    write_text(str(tmp_path / "m"), SEEN)

    assert (tmp_path / "m").read_text() == TEXT


def test_a_text_written_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(TEXT.replace("# score", "#\n\n#  a comment of mine\n# score"))

    found = read_text(str(tmp_path / "m"))

    assert found.weights.bias == 0.1 + 0.2
    assert found.weights.table.tobytes() == TABLE.tobytes()
    assert found.weights.features.tolist() == [4, 8]
    assert found.weights.feature_dim == 9
    assert found.params["threshold"] == 0.25


@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
def test_scores_are_bit_equal(tmp_path: Path, kind: str) -> None:
    model = model_of(planted_weights(40, 5, seed=2), kind)
    rows = random_batch(200, 40, seed=4)
    write_text(str(tmp_path / "m"), model)

    found = read_text(str(tmp_path / "m"), predictor_type=kind)

    assert found.predict(rows).tobytes() == model.predict(rows).tobytes()
    assert found.weights.features is None
    assert found.params == model.params


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bias=st.floats(allow_nan=False, allow_infinity=False),
    ids=st.lists(st.integers(0, 2**31 - 2), unique=True, max_size=5),
    data=st.data(),
)
def test_every_model_comes_back(
    tmp_path: Path, bias: float, ids: list[int], data: st.DataObject
) -> None:
    shape = (len(ids), data.draw(st.integers(2, 4)))
    table = data.draw(hnp.arrays("f4", shape, elements=floats))
    features = np.array(sorted(ids), np.int32)
    write_text(str(tmp_path / "m"), model_of(FMWeights(bias, table, 2**31 - 1, features)))

    found = read_text(str(tmp_path / "m")).weights

    assert found.bias.hex() == bias.hex()
    assert found.table.tobytes() == table.tobytes()
    assert found.features.tolist() == features.tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("text 1", "text 2", "is no model text"),
        ("end\n", "", "is cut"),
        ("9 \n8", "", "is cut"),
        ("id w v1 v2\n", "", "no line 'id w v1"),
        ("id w v1 v2\n", "id w v1\n", "not those of 2 factors"),
        ("threshold 0.25\n", "", "its header has to have"),
        ("threshold 0.25\n", "threshold 0.25\nthreshold 0.5\n", "its header has to have"),
        ("threshold 0.25", "threshold high", "threshold is 'high'"),
        ("binary_classifier\n", "ranker\n", "predictor_type is 'ranker'"),
        ("feature_dim 9", "feature_dim 1e9", "feature_dim is '1e9'"),
        ("feature_dim 9", "feature_dim 9000000000", "9,000,000,000 features"),
        ("feature_dim 9", "feature_dim 8", "feature 8 is out of order or outside 0 to 7"),
        ("features 2", "features 3", "has 2 lines of features, and tells of 3"),
        ("bias 0.3", "bias inf", "bias is 'inf0"),
        ("4 1e-30", "8 1e-30", "feature 8 is out of order"),
        ("4 1e-30", "-4 1e-30", "feature -4 is out of order or outside"),
        ("4 1e-30", "4.5 1e-30", "Row #1.*invalid value '4.5'"),
        ("4 1e-30 0.1", "4 1e-30", "Row #1: Expected 4 columns, got 3"),
        ("0.1 -2.5", "0.1 x", "invalid value 'x'"),
        ("0.1 -2.5", "0.1 nan", "NaN or infinite parameter of feature 4"),
    ],
)
def test_broken_texts_are_refused_with_the_reason(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    changed = TEXT.replace(old, new) if old in TEXT else TEXT[:-8]
    (tmp_path / "m").write_text(changed)

    with pytest.raises(ModelFormatError, match=message) as caught:
        read_text(str(tmp_path / "m"))
    assert str(tmp_path / "m") in str(caught.value)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    for length in range(len(TEXT)):
        (tmp_path / "m").write_text(TEXT[:length])
        with pytest.raises(ModelFormatError):
            read_text(str(tmp_path / "m"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 255)), min_size=1))
def test_changed_texts_are_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(TEXT.encode())
    for at, value in changes:
        data[at] = value
    (tmp_path / "m").write_bytes(data)

    try:
        found = read_text(str(tmp_path / "m"))
    except (ModelFormatError, InvalidParamError):
        return
    assert np.isfinite(found.weights.table).all()


def test_another_kind_than_asked_for_is_an_error(tmp_path: Path) -> None:
    write_text(str(tmp_path / "m"), SEEN)

    with pytest.raises(InvalidParamError, match="is a binary_classifier"):
        read_text(str(tmp_path / "m"), predictor_type="regressor")
