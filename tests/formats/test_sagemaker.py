"""Artifacts of SageMaker's Factorization Machines are read and written without MXNet."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.mxnet import RowSparse, read_ndarrays, write_ndarrays
from spark_fm.formats.models.native import SavedModel, imported_model
from spark_fm.formats.models.sagemaker import (
    is_artifact,
    open_sagemaker,
    read_sagemaker,
    write_sagemaker,
)
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests import oracle
from tests.builders import planted_weights, random_batch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sagemaker"
WEIGHTS = planted_weights(30, 4, seed=1)
SEEN = FMWeights(0.25, WEIGHTS.table[:3].copy(), 30, np.array([2, 7, 29], np.int32))
HUGE = FMWeights(0.25, WEIGHTS.table[:3].copy(), 2**31 - 1, np.array([2, 7, 2**31 - 2], np.int32))
ROWS = random_batch(50, 30, seed=3)


def model(weights: FMWeights = WEIGHTS, kind: str = "regressor", **known: Any) -> SavedModel:
    return imported_model(weights, kind, threshold=known.get("threshold", 0.5), origin={})


def arrays_of(weights: FMWeights = WEIGHTS, network: str = "sparse") -> dict[str, Any]:
    """Return dense arrays by SageMaker's names."""
    w, v = weights.linear.copy(), weights.factors.copy()
    w0 = np.array([weights.bias], np.float32)
    if network == "sparse":
        return {"v": v, "w1_weight": w[:, None], "w0_weight": w0}
    return {"v": v.T, "Linear_Plus_Bias_weight": w[None], "Linear_Plus_Bias_bias": w0}


def artifact(
    path: Path, arrays: dict[str, Any], meta: Any = None, symbol: Any = None, prefix: str = "arg:"
) -> str:
    """Write an artifact with what a test says, be it wrong."""
    params = io.BytesIO()
    write_ndarrays(params, [(prefix + name, array) for name, array in arrays.items()])
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("params", params.getvalue())
        for name, content in (("meta.json", meta), ("symbol.json", symbol)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                archive.writestr(name, text)
    with tarfile.open(path, "w:gz") as outer:
        info = tarfile.TarInfo("model_algo-1")
        info.size = len(inner.getvalue())
        outer.addfile(info, io.BytesIO(inner.getvalue()))
    return str(path)


def same(found: FMWeights, expected: FMWeights) -> bool:
    ids = [weights.features for weights in (found, expected)]
    return (
        found.bias == expected.bias
        and found.feature_dim == expected.feature_dim
        and found.table.tobytes() == expected.table.tobytes()
        and (ids[0] is None) == (ids[1] is None)
        and (ids[0] is None or ids[0].tolist() == ids[1].tolist())
    )


@pytest.mark.parametrize(
    ("network", "kind"), [("sparse", "binary_classifier"), ("dense", "regressor")]
)
def test_what_mxnet_trained_and_saved_scores_as_in_mxnet(network: str, kind: str) -> None:
    expected = json.loads((GOLDEN / "scores.json").read_text())[network]
    X = np.zeros((10, 12))
    for r, row in enumerate(expected["rows"]):
        for j, x in row:
            X[r, j] = x

    found = read_sagemaker(str(GOLDEN / f"{network}.tar.gz"))

    scores = found.predict(CsrBatch.from_matrix(X))
    assert scores == pytest.approx(expected["scores"], abs=1e-6)  # float32 sums of 12 terms
    assert np.ptp(scores) > 0.2
    assert found.params["predictorType"] == kind
    assert found.metadata["origin"]["network"] == network
    assert found.metadata["origin"]["hyperparameters"]["epochs"] == "5"


@pytest.mark.parametrize("form", ["dense", "row_sparse"])
@pytest.mark.parametrize("prefix", ["", "arg:"])
@pytest.mark.parametrize("network", ["sparse", "dense"])
def test_both_networks_are_read_in_either_form(
    tmp_path: Path, network: str, prefix: str, form: str
) -> None:
    arrays = arrays_of(network=network)
    if form == "row_sparse":
        arrays = {n: RowSparse(a, np.arange(len(a)), a.shape) for n, a in arrays.items()}
    path = artifact(tmp_path / "m", arrays, prefix=prefix)

    found = read_sagemaker(path, predictor_type="regressor")

    expected = FMWeights(float(np.float32(WEIGHTS.bias)), WEIGHTS.table, 30)
    assert same(found.weights, expected)
    naive = oracle.scores(oracle.Model.of_table(expected.table, expected.bias), ROWS)
    assert found.predict(ROWS) == pytest.approx(naive, rel=1e-4, abs=1e-5)  # float32 sums


def golden_params(network: str) -> bytes:
    """Return the list of arrays that MXNet 1.9.1 saved."""
    with tarfile.open(GOLDEN / f"{network}.tar.gz") as outer:
        zipped = outer.extractfile("model_algo-1")
        assert zipped is not None
        with zipfile.ZipFile(io.BytesIO(zipped.read())) as inner:
            return inner.read("params")


@pytest.mark.parametrize("has_names", [True, False])
@pytest.mark.parametrize("network", ["sparse", "dense"])
def test_a_plain_list_of_arrays_is_a_model_wherever_it_lies(
    tmp_path: Path, network: str, has_names: bool
) -> None:
    data = golden_params(network)
    if not has_names:
        named = read_ndarrays(data, source="")
        end = len(data) - sum(8 + len(name) for name, _ in named) - 8
        data = data[:end] + bytes(8)
    for name in ("alone/model_algo-1", "alone/any.params", "folder/model_algo-1",
                 "unpacked/model_algo-1-0000.params"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "alone" / "model_algo-1", "model_algo-1")
    expected = read_sagemaker(str(GOLDEN / f"{network}.tar.gz"))
    kind = expected.params["predictorType"]

    for place in ("alone/model_algo-1", "alone/any.params", "folder", "unpacked", "model.tar.gz"):
        assert is_artifact(str(tmp_path / place))
        found = read_sagemaker(str(tmp_path / place), predictor_type=kind)
        assert same(found.weights, expected.weights), place
    with pytest.raises(InvalidParamError, match="--predictor-type"):
        read_sagemaker(str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("names", "shapes", "what"),
    [
        ([""], [(10, 784)], r"a list of MXNet arrays without a network \(#0 \(10, 784\)\)"),
        (["mean", "s", "v"], [(1, 9), (3,), (9, 3)], "a model of SageMaker's PCA"),
        (["fc_weight", "fc_bias"], [(4, 3), (4,)], r"fc_weight \(4, 3\), fc_bias \(4,\)"),
        (["", "", ""], [(9, 1), (9, 1), (1,)], r"#0 \(9, 1\), #1 \(9, 1\), #2 \(1,\)"),
        (["", "", ""], [(9, 4), (8, 1), (1,)], r"#0 \(9, 4\), #1 \(8, 1\)"),
        ([], [], r"without a network \(none\)"),
    ],
)
def test_a_list_of_arrays_that_is_no_factorization_machine_is_said_to_hold_what_it_does(
    tmp_path: Path, names: list[str], shapes: list[tuple[int, ...]], what: str
) -> None:
    with open(tmp_path / "model_algo-1", "wb") as file:
        write_ndarrays(
            file, [(n, np.ones(s, np.float32)) for n, s in zip(names, shapes, strict=True)]
        )
    if names and not any(names):
        data = (tmp_path / "model_algo-1").read_bytes()
        (tmp_path / "model_algo-1").write_bytes(data[: -8 * len(names) - 8] + bytes(8))

    with pytest.raises(ModelFormatError, match=f"no factorization machine: it is .*{what}"):
        read_sagemaker(str(tmp_path / "model_algo-1"), predictor_type="regressor")


def test_a_list_of_arrays_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params").write_bytes(golden_params("sparse"))
    with pytest.raises(ModelFormatError, match="unpacks to more than 100 bytes"):
        read_sagemaker(str(tmp_path / "params"), predictor_type="regressor", max_bytes=100)


def test_a_layer_of_another_format_is_named_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "model_algo-1").write_bytes(b"binf" + bytes(20))
    with pytest.raises(ModelFormatError, match=r"model_algo-1 is neither a zip nor .* 62 69 6e 66"):
        read_sagemaker(str(tmp_path))


def test_rows_that_one_of_the_arrays_lacks_are_zero(tmp_path: Path) -> None:
    v, w = WEIGHTS.factors[:2].copy(), WEIGHTS.linear[:2, None].copy()
    arrays = {
        "v": RowSparse(v, np.array([3, 9]), (20, 4)),
        "w1_weight": RowSparse(w, np.array([9, 11]), (20, 1)),
        "w0_weight": np.zeros((1, 1), np.float32),
    }

    found = read_sagemaker(artifact(tmp_path / "m", arrays), predictor_type="regressor").weights

    assert found.features.tolist() == [3, 9, 11]
    assert np.array_equal(found.factors, [v[0], v[1], [0] * 4])
    assert found.linear.tolist() == [0, w[0, 0], w[1, 0]]


def test_every_layer_is_opened_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    write_sagemaker(str(path), model())
    zipped, unzipped, renamed = tmp_path / "tar", tmp_path / "zip", tmp_path / "mxnet"
    with tarfile.open(path) as outer:
        outer.extractall(zipped, filter="data")
    for folder in (unzipped, renamed):
        with zipfile.ZipFile(zipped / "model_algo-1") as inner:
            inner.extractall(folder)
    (renamed / "symbol.json").rename(renamed / "model-symbol.json")
    (renamed / "params").rename(renamed / "model-0000.params")

    for place in (zipped, zipped / "model_algo-1", unzipped, renamed, path.as_uri()):
        assert same(read_sagemaker(str(place)).weights, WEIGHTS)


HEAD = {"nodes": [{"op": "null"}, {"op": "LogisticRegressionOutput", "name": "out"}]}


@pytest.mark.parametrize(
    ("meta", "symbol", "asked", "expected"),
    [
        ({"training_parameters": {"predictor_type": "regressor"}}, HEAD, None, "regressor"),
        ({"training_parameters": {"predictor_type": "regressor"}}, None, "regressor", "regressor"),
        ({"training_parameters": {}}, HEAD, None, "binary_classifier"),
        (None, {"nodes": [{"op": "LinearRegressionOutput"}]}, None, "regressor"),
        (None, None, "binary_classifier", "binary_classifier"),
        ({}, {"nodes": [{"op": "MakeLoss"}]}, "regressor", "regressor"),
    ],
)
def test_the_kind_comes_from_the_artifact_or_else_the_caller(
    tmp_path: Path, meta: Any, symbol: Any, asked: str | None, expected: str
) -> None:
    path = artifact(tmp_path / "m", arrays_of(), meta, symbol)

    assert read_sagemaker(path, predictor_type=asked).params["predictorType"] == expected


def test_an_unknown_and_a_contradicted_kind_are_errors(tmp_path: Path) -> None:
    silent = artifact(tmp_path / "silent", arrays_of())
    told = artifact(tmp_path / "told", arrays_of(), symbol=HEAD)

    with pytest.raises(InvalidParamError, match='pass predictorType="binary_classifier" or'):
        read_sagemaker(silent)
    with pytest.raises(InvalidParamError, match="told is a binary_classifier"):
        read_sagemaker(told, predictor_type="regressor")
    with pytest.raises(InvalidParamError, match="predictorType='ranker' is not allowed"):
        read_sagemaker(silent, predictor_type="ranker")


def without(name: str) -> dict[str, Any]:
    return {n: a for n, a in arrays_of().items() if n != name}


@pytest.mark.parametrize("name", ["w1_weight", "w0_weight"])
def test_a_term_that_was_switched_off_may_be_missing(tmp_path: Path, name: str) -> None:
    switch = {"w1_weight": "use_linear", "w0_weight": "use_bias"}[name]
    meta = {"training_parameters": {switch: "false", "predictor_type": "regressor"}}

    found = read_sagemaker(artifact(tmp_path / "m", without(name), meta)).weights

    assert np.array_equal(found.factors, WEIGHTS.factors)
    assert not (found.linear if name == "w1_weight" else np.array(found.bias)).any()


NAN = np.full((30, 4), np.nan, np.float32)
DIM = {"training_parameters": {"feature_dim": "31", "predictor_type": "regressor"}}
FACTORS = {"training_parameters": {"num_factors": [], "predictor_type": "regressor"}}


@pytest.mark.parametrize(
    ("arrays", "meta", "message"),
    [
        (without("v"), None, "is no factorization machine: it is another network"),
        (without("w1_weight"), None, "lacks the array w1_weight"),
        (arrays_of() | {"v": NAN}, None, "NaN or infinite parameter of feature 0"),
        (arrays_of() | {"v": np.full((30, 4), 1e300)}, None, "NaN or infinite parameter"),
        (arrays_of() | {"w0_weight": np.array([np.inf], "f4")}, None, "has the bias inf"),
        (arrays_of() | {"w0_weight": np.ones(2, "f4")}, None, r"bias of shape \(2,\)"),
        (arrays_of() | {"v": np.zeros(30, "f4")}, None, "v of shape"),
        (arrays_of() | {"v": np.zeros((30, 0), "f4")}, None, "30 features and 0 factors"),
        (arrays_of() | {"v": np.zeros((29, 4), "f4")}, None, "linear weights of shape"),
        (arrays_of() | {"v": np.zeros((30, 4), "i4")}, None, "v of type int32"),
        (arrays_of(), DIM, "feature_dim '31' in meta.json, but arrays of 30"),
        (arrays_of(), FACTORS, r"num_factors \[\] in meta.json"),
        (arrays_of(), {"training_parameters": {"predictor_type": "x"}}, "predictor_type 'x'"),
        (arrays_of(), {"training_parameters": 5}, "no JSON object"),
        (arrays_of(), [], "no JSON object"),
        (arrays_of(), "{", "no JSON"),
        (arrays_of(), "[" * 100_000, "no JSON"),
        (arrays_of(), '{"a":' * 70 + "1" + "}" * 70, "nested deeper than 64 levels"),
    ],
)
def test_damaged_models_are_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, Any], meta: Any, message: str
) -> None:
    path = artifact(tmp_path / "m", arrays, meta, HEAD if meta is None else None)

    with pytest.raises(ModelFormatError, match=message) as caught:
        read_sagemaker(path)
    assert path in str(caught.value)


def test_a_claimed_shape_takes_no_memory(tmp_path: Path) -> None:
    few = RowSparse(np.ones((1, 30), np.float32), np.array([0]), (2**31, 30))
    path = artifact(tmp_path / "m", arrays_of(network="dense") | {"v": few})

    with pytest.raises(ModelFormatError, match="once its zeros are filled in"):
        read_sagemaker(path, predictor_type="regressor")


def test_an_artifact_without_parameters_or_with_two_is_refused(tmp_path: Path) -> None:
    for name, members in {"none": ["meta.json"], "two": ["params", "m.params"]}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, "{}")
        with pytest.raises(ModelFormatError, match="is no artifact of SageMaker"):
            open_sagemaker(str(tmp_path / name))


@pytest.mark.parametrize("layer", ["model.tar.gz", "model_algo-1", ""])
def test_a_real_artifact_of_the_linear_learner_opens_and_is_refused_by_name(
    data_folder: Path, layer: str
) -> None:
    path = data_folder / "sagemaker" / "linear-learner-artifact" / layer

    found = open_sagemaker(str(path))

    assert {name: array.shape for name, array in found.arrays.items()} == {
        "fc0_weight": (5000, 1),
        "fc0_bias": (1, 1),
    }
    assert float(found.arrays["fc0_bias"][0, 0]) == pytest.approx(-1.4167845, rel=1e-6)
    assert np.isfinite(found.arrays["fc0_weight"]).all()
    assert found.predictor_type == "binary_classifier"
    with pytest.raises(ModelFormatError, match=r"it is a model of SageMaker's linear learner"):
        read_sagemaker(str(path))


@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
@pytest.mark.parametrize("network", ["sparse", "dense"])
def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path, network: str, kind: str) -> None:
    exact = FMWeights(0.1, WEIGHTS.table, 30)  # no float32
    path = str(tmp_path / "model.tar.gz")

    write_sagemaker(path, model(exact, kind, threshold=0.3), network=network)
    found = read_sagemaker(path)

    assert same(found.weights, exact)
    assert (found.params["predictorType"], found.params["threshold"]) == (kind, 0.3)
    assert found.predict(ROWS).tobytes() == model(exact, kind).predict(ROWS).tobytes()


def test_a_table_of_ids_is_written_as_it_is(tmp_path: Path) -> None:
    for weights in (SEEN, HUGE):
        path = str(tmp_path / f"{weights.feature_dim}.tar.gz")
        write_sagemaker(path, model(weights))

        assert same(read_sagemaker(path).weights, weights)
        assert os.path.getsize(path) < 3000


def test_the_dense_network_has_all_rows_and_is_refused_when_too_large(tmp_path: Path) -> None:
    path = str(tmp_path / "model.tar.gz")
    write_sagemaker(path, model(SEEN), network="dense")

    found = read_sagemaker(path).weights

    assert found.features is None
    assert np.array_equal(found.table[SEEN.features], SEEN.table)
    assert found.margins(ROWS).tobytes() == SEEN.margins(ROWS).tobytes()
    with pytest.raises(InvalidParamError, match=r"dense network lists all 2,147,483,647 features"):
        write_sagemaker(str(tmp_path / "huge"), model(HUGE), network="dense")
    with pytest.raises(InvalidParamError, match="network='wide' is not allowed"):
        write_sagemaker(str(tmp_path / "huge"), model(HUGE), network="wide")
    assert sorted(os.listdir(tmp_path)) == ["model.tar.gz"]


@pytest.mark.parametrize("network", ["sparse", "dense"])
def test_the_same_model_gives_the_same_bytes(tmp_path: Path, network: str) -> None:
    digests = set()
    for name in ("a.tar.gz", "b.tar.gz"):
        write_sagemaker(str(tmp_path / name), model(), network=network)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())

    assert len(digests) == 1


@pytest.mark.parametrize("network", ["sparse", "dense"])
@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
def test_the_network_is_the_one_that_mxnet_was_checked_with(
    tmp_path: Path, network: str, kind: str
) -> None:
    path = str(tmp_path / "model.tar.gz")
    write_sagemaker(path, model(kind=kind), network=network)

    found = open_sagemaker(path)

    nodes = found.symbol["nodes"]
    assert [node["name"] for node in nodes][-2:] == ["out_label", "out"]
    assert nodes[0]["name"] == "data"
    variables = {node["name"]: node for node in nodes if node["op"] == "null"}
    assert set(variables) == {"data", "out_label", *found.arrays}
    for name, array in found.arrays.items():
        assert variables[name]["attrs"]["__shape__"] == str(array.shape)
    for i, node in enumerate(nodes):
        assert all(number < i for number, _, _ in node["inputs"])
    trained = open_sagemaker(str(GOLDEN / f"{network}.tar.gz")).symbol["nodes"]
    shown = [(n["op"], n["name"], n["inputs"]) for n in nodes[:-1]]
    assert shown == [(n["op"], n["name"], n["inputs"]) for n in trained[:-1]]


def test_hyperparameters_of_an_artifact_go_out_again(tmp_path: Path) -> None:
    path = str(tmp_path / "model.tar.gz")
    trained = read_sagemaker(str(GOLDEN / "sparse.tar.gz"))

    write_sagemaker(path, trained)

    assert open_sagemaker(path).hyperparameters == trained.metadata["origin"]["hyperparameters"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"old")
    broken = model()
    broken.params.pop("threshold")

    with pytest.raises(KeyError):
        write_sagemaker(str(path), broken)

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.tar.gz"]


def params_of(name: str) -> bytes:
    with tarfile.open(GOLDEN / name) as outer:
        inner = io.BytesIO(outer.extractfile("model_algo-1").read())
    with zipfile.ZipFile(inner) as archive:
        return archive.read("params")


PARAMS = [params_of("sparse.tar.gz"), params_of("dense.tar.gz")]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({"meta.json": "[" + "[]," * 2**21 + "[]]"}, "meta.json has 6,291,460 bytes, more than"),
        ({"meta.json": '{"training_parameters": {"predictor_type": ["regressor"]}}'},
         r"predictor_type \['regressor'\]"),
        ({"meta.json": '{"spark_fm": {"threshold": 1' + "0" * 400 + "}}"}, "threshold 1000"),
        ({"meta.json": '{"spark_fm": {"threshold": "0.5"}}'}, "threshold 0.5 in meta.json"),
    ],
    ids=["long", "list", "huge", "text"],
)  # fmt: skip
def test_what_describes_a_model_in_a_wrong_way_is_named(
    tmp_path: Path, documents: dict[str, str], message: str
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("params", PARAMS[0])
        for name, text in documents.items():
            archive.writestr(name, text)

    with pytest.raises(ModelFormatError, match=message):
        read_sagemaker(str(path), predictor_type="regressor")


def test_a_network_of_odd_operators_tells_no_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("params", PARAMS[0])
        archive.writestr("symbol.json", '{"nodes": [{"op": {}}, {"op": [1]}, 3]}')

    assert read_sagemaker(str(path), predictor_type="regressor").loss == "squared"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PARAMS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_parameters_are_read_or_refused(
    tmp_path: Path, params: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(params)
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path / "changed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("params", bytes(data))

    try:
        found = read_sagemaker(str(path), predictor_type="regressor", max_bytes=10**6)
    except ModelFormatError:
        return
    assert np.isfinite(found.weights.table).all()
