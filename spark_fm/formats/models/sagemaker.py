"""SageMaker's Factorization Machines artifact, read and written without MXNet."""

from __future__ import annotations

import gzip
import io
import json
import os
import posixpath
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.files import atomic_write, local_path, store_of
from spark_fm.formats.models.archives import MAX_BYTES, ZIP_BYTES, read_members, read_zip
from spark_fm.formats.models.mxnet import CSR as CSR_STORAGE
from spark_fm.formats.models.mxnet import (
    FIRST_BYTES,
    ROW_SPARSE,
    RowSparse,
    Stored,
    read_ndarrays,
    to_dense,
    write_ndarrays,
)
from spark_fm.formats.models.native import (
    LOSS_OF_PREDICTOR,
    SavedModel,
    check_sizes,
    checked_weights,
    full_table,
    imported_model,
)
from spark_fm.learner.weights import FMWeights

LAYER = "model_algo-"
META = "meta.json"
SPARSE, DENSE = "sparse", "dense"
# Factors, linear weights and bias of each network.
NAMES = {
    SPARSE: ("v", "w1_weight", "w0_weight"),
    DENSE: ("v", "Linear_Plus_Bias_weight", "Linear_Plus_Bias_bias"),
}
# Layers of MXNet whose loss shows the kind of model.
HEADS = {
    "LogisticRegressionOutput": "binary_classifier",
    "LinearRegressionOutput": "regressor",
}
ARGUMENT = "arg:"
PARAMS = "params"
PCA = {"mean", "s", "v"}
MAX_JSON_BYTES = 2**22
MAX_NESTING = 64
LINEAR_LEARNER = "additional-params.json"
MEMBER = "model_algo-1"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
COMPRESSION = 1  # more takes longer and finds nothing in weights
MXNET_VERSION = 10301  # whose networks SageMaker saves, as MXNet counts versions
KINDS = {loss: kind for kind, loss in LOSS_OF_PREDICTOR.items()}
SWITCHES = ("", "use_linear", "use_bias")  # with which a network has no such array


def read_sagemaker(
    path: str,
    *,
    predictor_type: str | None = None,
    threshold: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> SavedModel:
    """Read an artifact of SageMaker's Factorization Machines, at a path as in ``open_sagemaker``.

    ``predictor_type`` is needed when neither ``meta.json`` nor the network shows it, and raises
    InvalidParamError when they show another. The threshold, the score from which the label is
    1, is 0.5 by default, SageMaker's. A layer may unpack to ``max_bytes``. The training's
    hyperparameters are in ``metadata["origin"]``. Raises ModelFormatError for an artifact of
    another algorithm, and as ``open_sagemaker`` does.
    """
    return model_of(
        open_sagemaker(path, max_bytes=max_bytes), predictor_type=predictor_type,
        threshold=threshold, max_bytes=max_bytes,
    )  # fmt: skip


def model_of(
    artifact: SageMakerArtifact,
    *,
    predictor_type: str | None = None,
    threshold: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> SavedModel:
    """Return the model in an artifact; see ``read_sagemaker``."""
    network = artifact.network
    if network is None:
        raise ModelFormatError(
            f"{artifact.source} is no factorization machine: it is {artifact.describe()}. A "
            "factorization machine has the array v, and w1_weight or Linear_Plus_Bias_weight."
        )
    kind = _kind_of(artifact, predictor_type)
    weights = _weights_of(artifact, network, max_bytes)
    if threshold is None:
        kept = artifact.ours.get("threshold", 0.5)
        if not isinstance(kept, (int, float)) or not 0 <= kept <= 1:
            raise ModelFormatError(
                f"{artifact.source} has the threshold {str(kept)[:50]} in {META}; expected 0 to 1."
            )
        threshold = float(kept)
    origin = {
        "format": "sagemaker",
        "network": network,
        "hyperparameters": artifact.hyperparameters,
    }
    return imported_model(weights, kind, threshold=threshold, origin=origin)


def _kind_of(artifact: SageMakerArtifact, asked: str | None) -> str:
    declared = artifact.predictor_type
    if declared is None and asked is None:
        raise InvalidParamError(
            f"{artifact.source} does not tell whether it is a classifier or a regressor: pass "
            'predictorType="binary_classifier" or "regressor" (--predictor-type).'
        )
    if declared is not None and asked is not None and declared != asked:
        raise InvalidParamError(
            f"predictorType={asked!r} was asked for, but {artifact.source} is a {declared}. Leave "
            "predictorType out."
        )
    return str(declared or asked)


def _weights_of(artifact: SageMakerArtifact, network: str, max_bytes: int) -> FMWeights:
    arrays = _checked_arrays(artifact, network)
    factors, linear, bias = (arrays.get(name) for name in NAMES[network])
    where = f"{artifact.source} ({network} network)"
    if network == DENSE:
        factors = None if factors is None else _plain(factors, "v", max_bytes).T
        if linear is not None:
            linear = _plain(linear, "the linear weights", max_bytes).reshape(-1, 1)
    if factors is None or len(factors.shape) != 2:
        seen = None if factors is None else factors.shape
        raise ModelFormatError(f"{where} has v of shape {seen}; expected a matrix.")
    feature_dim = factors.shape[0]
    if linear is not None and linear.shape not in ((feature_dim, 1), (feature_dim,)):
        raise ModelFormatError(
            f"{where} has linear weights of shape {linear.shape} for v of shape {factors.shape}; "
            f"expected {feature_dim:,} of them. The file is damaged."
        )
    _check_size(artifact, "feature_dim", feature_dim)
    _check_size(artifact, "num_factors", factors.shape[1])
    check_sizes(feature_dim, factors.shape[1], where)
    table, features = _joined(factors, linear, max_bytes)
    w0 = 0.0 if bias is None else _bias_of(artifact, _plain(bias, "the bias", max_bytes))
    return checked_weights(w0, table, feature_dim, features=features, source=where)


def _checked_arrays(artifact: SageMakerArtifact, network: str) -> dict[str, Stored]:
    """Return the arrays of a network; the terms that are switched off may be missing."""
    found: dict[str, Stored] = {}
    for name, switch in zip(NAMES[network], SWITCHES, strict=True):
        array = artifact.arrays.get(name)
        if array is None:
            if switch and str(artifact.hyperparameters.get(switch)).lower() == "false":
                continue
            raise ModelFormatError(
                f"{artifact.source} lacks the array {name}, which the {network} network of a "
                "factorization machine has. The file is damaged."
            )
        data = array if isinstance(array, np.ndarray) else array.data
        if data.dtype.kind != "f":
            raise ModelFormatError(
                f"{artifact.source} has {name} of type {data.dtype}; expected float32."
            )
        found[name] = array
    return found


def _joined(
    factors: Stored, linear: Stored | None, max_bytes: int
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
    """Return one table, and its ids when rows are missing from both arrays."""
    k = factors.shape[1]
    if not isinstance(factors, RowSparse) and not isinstance(linear, RowSparse):
        table: NDArray[np.float32] = np.zeros((factors.shape[0], k + 1), np.float32)
        table[:, :k] = _floats(_plain(factors, "v", max_bytes))
        if linear is not None:
            table[:, k] = _floats(_plain(linear, "the linear weights", max_bytes)).reshape(-1)
        return table, None
    parts = [_rows_of(factors, max_bytes)]
    if linear is not None:
        parts.append(_rows_of(linear, max_bytes))
    ids = np.unique(np.concatenate([indices for indices, _ in parts]))
    table = np.zeros((len(ids), k + 1), np.float32)
    indices, data = parts[0]
    table[np.searchsorted(ids, indices), :k] = _floats(data)
    for indices, data in parts[1:]:
        table[np.searchsorted(ids, indices), k] = _floats(data).reshape(-1)
    is_whole = len(ids) == factors.shape[0]
    return table, None if is_whole else ids.astype(np.int32)


def _rows_of(array: Stored, max_bytes: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    if isinstance(array, RowSparse):
        return array.indices, array.data
    whole = _plain(array, "an array", max_bytes)
    return np.arange(len(whole)), whole


def _bias_of(artifact: SageMakerArtifact, array: NDArray[Any]) -> float:
    if array.size != 1:
        raise ModelFormatError(
            f"{artifact.source} has a bias of shape {array.shape}; expected one number."
        )
    bias = float(_floats(array).reshape(())[()])
    try:  # what we export keeps the digits that float32 has not
        exact = float.fromhex(str(artifact.ours["bias"]))
        with np.errstate(over="ignore"):
            return exact if float(np.float32(exact)) == bias else bias
    except (KeyError, ValueError, OverflowError):
        return bias


def _floats(array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return array.astype(
            np.float32, copy=False
        )  # what grows infinite is refused by checked_weights


def _plain(array: Stored, what: str, max_bytes: int) -> NDArray[Any]:
    return to_dense(array, max_bytes=max_bytes, what=what)


def _check_size(artifact: SageMakerArtifact, name: str, size: int) -> None:
    declared = artifact.hyperparameters.get(name)
    try:
        agrees = declared is None or float(declared) == size
    except (TypeError, ValueError, OverflowError):
        agrees = False
    if not agrees:
        raise ModelFormatError(
            f"{artifact.source} has {name} {declared!r} in {META}, but arrays of {size:,}. The "
            "file is damaged, or put together from two."
        )


@dataclass(frozen=True, slots=True, eq=False)
class SageMakerArtifact:
    """The content of an artifact of one of SageMaker's algorithms that use MXNet."""

    source: str  # where it was read
    arrays: dict[str, Stored | None]  # by name, without MXNet's ``arg:``; None if not saved
    symbol: dict[str, Any]  # the network; may be empty
    documents: dict[str, Any]  # the other JSON members by name, such as ``meta.json``

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Training hyperparameters by SageMaker's names; empty when not kept."""
        found = self._meta.get("training_parameters", {})
        if not isinstance(found, dict):
            raise ModelFormatError(
                f"{self.source} has training_parameters in {META} that are no JSON object."
            )
        return found

    @property
    def _meta(self) -> dict[str, Any]:
        meta = self.documents.get(META, {})
        if not isinstance(meta, dict):
            raise ModelFormatError(f"{self.source} has a {META} that is no JSON object.")
        return meta

    @property
    def ours(self) -> dict[str, Any]:
        """What ``write_sagemaker`` put into ``meta.json``; empty for SageMaker's own."""
        found = self._meta.get("spark_fm", {})
        return found if isinstance(found, dict) else {}

    @property
    def network(self) -> str | None:
        """``"sparse"``, ``"dense"``, or None when it is no factorization machine."""
        names = set(self.arrays)
        if "v" in names:
            for network, (_, linear, bias) in NAMES.items():
                if {linear, bias} & names:
                    return network
        return None

    @property
    def predictor_type(self) -> str | None:
        """From ``meta.json`` or the network's last layer; None when neither shows it."""
        declared = self.hyperparameters.get("predictor_type")
        if declared is not None:
            if not isinstance(declared, str) or declared not in LOSS_OF_PREDICTOR:
                raise ModelFormatError(
                    f"{self.source} has predictor_type {declared!r} in {META}; expected "
                    f"{' or '.join(LOSS_OF_PREDICTOR)}."
                )
            return declared
        nodes = self.symbol.get("nodes", [])
        operators = [node.get("op") for node in nodes if isinstance(node, dict)]
        kinds = {kind for operator, kind in HEADS.items() if operator in operators}
        return kinds.pop() if len(kinds) == 1 else None

    def describe(self) -> str:
        """Return a description of the artifact in a few words."""
        arrays = ", ".join(
            f"{_printable(name)} {'without a shape' if array is None else array.shape}"
            for name, array in list(self.arrays.items())[:10]
        )
        if set(self.arrays) == PCA:
            return f"a model of SageMaker's PCA (arrays {arrays})"
        if not self.symbol and not self.network:
            return f"a list of MXNet arrays without a network ({arrays or 'none'})"
        if LINEAR_LEARNER in self.documents:
            return f"a model of SageMaker's linear learner (arrays {arrays})"
        if self.network:
            return f"a factorization machine, {self.network} network (arrays {arrays})"
        return f"another network of MXNet (arrays {arrays or 'none'})"


def open_sagemaker(path: str, *, max_bytes: int = MAX_BYTES) -> SageMakerArtifact:
    """Open an artifact down to its arrays.

    The path is ``model.tar.gz``, the ``model_algo-1`` in it, which is a zip or a list of MXNet
    arrays, such a list by itself (``params``, ``*.params``), or a folder with what any of these
    unpacks to; of a store too, such as ``s3://``, except for folders. Arrays without names get
    those of a factorization machine where their shapes fit no other way, else ``#0``, ``#1``
    and so on. Raises ModelFormatError for any other file, a damaged one, a dangerous one, and
    for more than ``max_bytes`` in a layer. Nothing is written to disk. In memory: the zip and
    ``params``, of which dense arrays are views.
    """
    members = _innermost(path, max_bytes)
    found = {_base(name): data for name, data in members.items()}
    if len(found) < len(members):
        raise ModelFormatError(f"{path} holds several members of one name: {', '.join(members)}.")
    params = [name for name in found if _is_params(name)]
    if len(params) != 1:
        raise ModelFormatError(
            f"{path} is no artifact of SageMaker: it holds {len(params)} files of parameters, "
            f"among {', '.join(found) or 'nothing that is known'}; expected one, called params."
        )
    documents = {name: _json(data, path, name) for name, data in found.items()
                 if name.endswith(".json")}  # fmt: skip
    symbols = [name for name in documents if name.endswith("symbol.json")]
    symbol = documents.pop(symbols[0]) if symbols else {}
    if not isinstance(symbol, dict) or not isinstance(symbol.get("nodes", []), list):
        raise ModelFormatError(f"{path} has a {symbols[0]} that describes no network of MXNet.")
    source = f"{path}: {params[0]}"
    arrays: dict[str, Stored | None] = {}
    listed = read_ndarrays(found[params[0]], source=source)
    for name, array in listed if all(name for name, _ in listed) else _named(listed):
        plain = name.removeprefix(ARGUMENT)
        if plain in arrays:
            raise ModelFormatError(f"{source} has two arrays called {plain!r}.")
        arrays[plain] = array
    return SageMakerArtifact(path, arrays, symbol, documents)


def is_artifact(path: str) -> bool:
    """Return whether there is a file, or a folder with what an artifact unpacks to."""
    if os.path.isdir(path):
        return any(_is_layer(name) or _is_params(name) for name in os.listdir(path))
    store, inner = store_of(path)
    return bool(store.get_file_info(inner).is_file)


def _named(arrays: list[tuple[str, Stored | None]]) -> list[tuple[str, Stored | None]]:
    """Return arrays that have no names with those that their shapes show."""
    plain = [array for _, array in arrays]
    if len(plain) == len(SWITCHES):
        fitting = [
            list(zip(names, order, strict=True))
            for network, names in NAMES.items()
            for order in permutations(plain)
            if _are_shapes_of(network, *(() if each is None else each.shape for each in order))
        ]
        if len(fitting) == 1:
            return fitting[0]
    return [(f"#{i}", array) for i, array in enumerate(plain)]


def _are_shapes_of(
    network: str, factors: tuple[int, ...], linear: tuple[int, ...], bias: tuple[int, ...]
) -> bool:
    if network == DENSE:
        factors, linear = factors[::-1], linear[::-1]
    return bias == (1,) and len(factors) == 2 and linear == (factors[0], 1)


def _innermost(path: str, max_bytes: int) -> dict[str, bytes]:
    """Return the members of the zip, or the list of arrays; the layers around it are let go."""
    members = read_members(path, _is_needed, plain=(FIRST_BYTES, PARAMS), max_bytes=max_bytes)
    layers = [name for name in members if _is_layer(name)]
    if not layers:
        return members
    layer = min(layers)
    data = members.pop(layer)
    if data.startswith(FIRST_BYTES):
        return {**members, PARAMS: data}
    if not data.startswith(ZIP_BYTES):
        raise ModelFormatError(
            f"{path} is no artifact of a factorization machine: its {_base(layer)} is neither a "
            "zip nor a list of MXNet arrays, but begins with the bytes "
            f"{data[:8].hex(' ') or '(none)'}."
        )
    return read_zip(io.BytesIO(data), _is_needed, f"{path}: {layer}", max_bytes=max_bytes)


def _json(data: bytes, path: str, name: str) -> Any:
    if len(data) > MAX_JSON_BYTES:  # parsed, it takes some thirty times as much
        raise ModelFormatError(
            f"{path} is refused: its {name} has {len(data):,} bytes, more than "
            f"{MAX_JSON_BYTES:,}. An artifact of a training describes itself in less."
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ModelFormatError(f"{path} has a {name} that is no JSON: {err}.") from err
    level, depth = [found], 0
    while level:  # not by recursion, which is what deep nesting is to bring down
        if depth > MAX_NESTING:
            raise ModelFormatError(f"{path} has a {name} nested deeper than {MAX_NESTING} levels.")
        inner = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level, depth = [value for values in inner for value in values], depth + 1
    return found


def _printable(name: str) -> str:
    return name[:100].encode("unicode_escape").decode()  # no control sequences for a terminal


def _base(name: str) -> str:
    return posixpath.basename(name)


def _is_params(name: str) -> bool:
    return name == PARAMS or name.endswith(".params")


def _is_layer(name: str) -> bool:
    base = _base(name)  # MXNet calls the files of a network model_algo-1-0000.params and so on
    return base.startswith(LAYER) and not base.endswith((".json", ".params"))


def _is_needed(name: str) -> bool:
    base = _base(name)
    return _is_layer(base) or base.endswith(".json") or _is_params(base)


def write_sagemaker(
    path: str,
    model: SavedModel,
    *,
    network: str = SPARSE,
    hyperparameters: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write a local ``model.tar.gz`` as SageMaker's Factorization Machines leave it.

    The sparse network has rows of the features that the model has rows for, the dense one,
    limited to ``max_bytes``, of all features; another one, or a larger one, raises
    InvalidParamError. ``hyperparameters``, by SageMaker's names, are added to those that came
    with the model.

    Time and disk O(size of the model); memory a few MiB beside the model for the sparse
    network, once its size more for the dense one. A bias that is no float32 keeps its
    digits in ``meta.json``.
    """
    if network not in NAMES:
        raise InvalidParamError(
            f"network={network!r} is not allowed: expected {' or '.join(NAMES)}."
        )
    path = local_path(path, "path")
    arrays = _sparse_arrays(model) if network == SPARSE else _dense_arrays(model, max_bytes)
    meta = _meta_of(model, hyperparameters or {})
    documents = {"symbol.json": symbol_of(model, network), META: meta}
    # The tar's header holds the length of the complete zip.
    folder = os.path.dirname(os.path.realpath(path))
    with atomic_write(path) as out, tempfile.TemporaryFile(dir=folder) as inner:
        _write_zip(cast(BinaryIO, inner), documents, arrays)
        size = inner.tell()
        inner.seek(0)
        with gzip.GzipFile("", "wb", COMPRESSION, out, 0) as zipped:
            member = tarfile.TarInfo(MEMBER)
            member.size, member.mode = size, 0o644
            with tarfile.open(
                fileobj=cast(BinaryIO, zipped), mode="w", format=tarfile.PAX_FORMAT
            ) as archive:
                archive.addfile(member, inner)


def symbol_of(model: SavedModel, network: str) -> dict[str, Any]:
    """Return MXNet's description of a network that scores as the model does.

    Input ``data``, label ``out_label``, output ``out``. The score is the sum-of-squares
    form of Rendle 2010, eq. (5).
    """
    n, k = model.weights.feature_dim, model.weights.k
    graph = _Graph()
    nodes = _sparse_score(graph, n, k) if network == SPARSE else _dense_score(graph, n, k)
    kind = KINDS[model.loss]
    head = next((operator for operator, head_kind in HEADS.items() if head_kind == kind), None)
    if head is None:
        raise InvalidParamError(
            f"predictorType={kind!r} has no counterpart in SageMaker; expected "
            f"{' or '.join(sorted(set(HEADS.values())))}."
        )
    graph.node(head, "out", [nodes, graph.variable("out_label")])
    return graph.described()


def _sparse_score(graph: _Graph, n: int, k: int) -> int:
    data = graph.variable("data", storage=CSR_STORAGE)
    v, linear, bias = NAMES[SPARSE]
    w = graph.variable(linear, shape=(n, 1), storage=ROW_SPARSE)
    product = graph.node("dot", "linear", [data, w])
    w0 = graph.variable(bias, shape=(1,))
    first = graph.node("broadcast_add", "linear_plus_bias", [product, w0])
    factors = graph.variable(v, shape=(n, k), storage=ROW_SPARSE)
    rows = {"axis": "1", "keepdims": "True"}
    sums = graph.node("dot", "sums", [data, factors])
    squares = graph.node("square", "sums_squared", [sums])
    pairs = graph.node("sum", "all_pairs", [squares], rows)
    data_squares = graph.node("square", "data_squared", [data])
    v_squares = graph.node("_square_sum", "v_squared_sums", [factors], rows)
    own = graph.node("dot", "own_pairs", [data_squares, v_squares])
    return _added(graph, first, graph.node("elemwise_sub", "pairs_twice", [pairs, own]))


def _dense_score(graph: _Graph, n: int, k: int) -> int:
    data = graph.variable("data")
    v, linear, bias = NAMES[DENSE]
    w = graph.variable(linear, shape=(1, n))
    w0 = graph.variable(bias, shape=(1,))
    layer = linear.removesuffix("_weight")
    first = graph.node("FullyConnected", layer, [data, w, w0], {"num_hidden": "1"})
    factors = graph.variable(v, shape=(k, n))
    hidden = {"no_bias": "True", "num_hidden": str(k)}
    sums = graph.node("FullyConnected", "sums", [data, factors], hidden)
    squares = graph.node("square", "sums_squared", [sums])
    data_squares = graph.node("square", "data_squared", [data])
    v_squares = graph.node("square", "v_squared", [factors])
    own = graph.node("FullyConnected", "own_pairs", [data_squares, v_squares], hidden)
    twice = graph.node("elemwise_sub", "pairs_twice_by_factor", [squares, own])
    rows = {"axis": "1", "keepdims": "True"}
    return _added(graph, first, graph.node("sum", "pairs_twice", [twice], rows))


def _added(graph: _Graph, first: int, pairs_twice: int) -> int:
    pairs = graph.node("_mul_scalar", "pairs", [pairs_twice], {"scalar": "0.5"})
    return graph.node("elemwise_add", "score", [first, pairs])


class _Graph:
    """Nodes of a network in an order in which each comes after its inputs."""

    def __init__(self) -> None:
        self._nodes: list[dict[str, Any]] = []

    def variable(
        self, name: str, *, shape: tuple[int, ...] | None = None, storage: int | None = None
    ) -> int:
        """Add an input or a parameter and return its number."""
        attributes = {} if shape is None else {"__shape__": str(shape)}
        if storage is not None:
            attributes["__storage_type__"] = str(storage)
        return self.node("null", name, [], attributes)

    def node(
        self, operator: str, name: str, inputs: list[int], attrs: dict[str, str] | None = None
    ) -> int:
        """Add an operator on earlier nodes and return its number."""
        node: dict[str, Any] = {"op": operator, "name": name}
        if attrs:
            node["attrs"] = attrs
        self._nodes.append({**node, "inputs": [[number, 0, 0] for number in inputs]})
        return len(self._nodes) - 1

    def described(self) -> dict[str, Any]:
        """Return the whole network; its last node is the output."""
        nodes = self._nodes
        return {
            "nodes": nodes,
            "arg_nodes": [i for i, node in enumerate(nodes) if node["op"] == "null"],
            "node_row_ptr": list(range(len(nodes) + 1)),
            "heads": [[len(nodes) - 1, 0, 0]],
            "attrs": {"mxnet_version": ["int", MXNET_VERSION]},
        }


_Arrays = list[tuple[str, NDArray[Any] | RowSparse]]


def _sparse_arrays(model: SavedModel) -> _Arrays:
    weights = model.weights
    ids = weights.features
    # MXNet's sparse network saves both tables as rows under their ids, all rows or not.
    rows = np.arange(weights.feature_dim) if ids is None else ids.astype(np.int64)
    v, linear, bias = NAMES[SPARSE]
    n, k = weights.feature_dim, weights.k
    return [
        (linear, RowSparse(weights.linear[:, None], rows, (n, 1))),
        (bias, np.array([weights.bias], np.float32)),
        (v, RowSparse(weights.factors, rows, (n, k))),
    ]


def _dense_arrays(model: SavedModel, max_bytes: int) -> _Arrays:
    table = full_table(
        model, max_bytes=max_bytes, what="the dense network",
        instead='write network="sparse", which needs no more',
    )  # fmt: skip
    v, linear, bias = NAMES[DENSE]
    return [
        (linear, table[None, :, -1]),
        (bias, np.array([model.weights.bias], np.float32)),
        (v, table[:, :-1].T),
    ]


def _write_zip(file: BinaryIO, documents: dict[str, Any], arrays: _Arrays) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in documents.items():
            archive.writestr(_zip_member(name), json.dumps(content, indent=2))
        with archive.open(_zip_member(PARAMS), "w", force_zip64=_is_large(arrays)) as stream:
            named = [(f"{ARGUMENT}{name}", array) for name, array in arrays]
            write_ndarrays(cast(BinaryIO, stream), named)


def _meta_of(model: SavedModel, hyperparameters: Mapping[str, str]) -> dict[str, Any]:
    origin = model.metadata.get("origin") or {}
    weights = model.weights
    known = {
        "feature_dim": str(weights.feature_dim),
        "num_factors": str(weights.k),
        "predictor_type": KINDS[model.loss],
    }
    kept = origin.get("hyperparameters") if origin.get("format") == "sagemaker" else None
    ours = {
        "version": __version__,
        "bias": weights.bias.hex(),
        "threshold": model.params["threshold"],
    }
    return {"training_parameters": {**(kept or {}), **hyperparameters, **known}, "spark_fm": ours}


def _zip_member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, ZIP_TIME)
    member.external_attr = 0o644 << 16
    member.create_system = 3  # the same on every system
    return member


def _is_large(arrays: _Arrays) -> bool:
    sizes = [
        array.data.nbytes + array.indices.nbytes if isinstance(array, RowSparse) else array.nbytes
        for _, array in arrays
    ]
    return sum(sizes) > zipfile.ZIP64_LIMIT - 2**20
