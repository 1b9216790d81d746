"""Write the artifact of SageMaker's Factorization Machines, for MXNet and for readers of it.

The same model gives the same bytes: no time, no name of a user, a fixed order.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError
from spark_fm.formats.archives import MAX_BYTES
from spark_fm.formats.artifact import LOSSES, SavedModel
from spark_fm.formats.exchanging import full_table
from spark_fm.formats.ndarrays import CSR as CSR_STORAGE
from spark_fm.formats.ndarrays import ROW_SPARSE, RowSparse, write_ndarrays
from spark_fm.formats.placing import local_path, replacing
from spark_fm.formats.sagemaker_artifact import ARGUMENT, DENSE, HEADS, META, NAMES, SPARSE

MEMBER = "model_algo-1"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
COMPRESSION = 1  # more takes longer and finds nothing in weights
MXNET_VERSION = 10301  # whose networks SageMaker saves, as MXNet counts versions
KINDS = {loss: kind for kind, loss in LOSSES.items()}


def write_sagemaker(
    path: str,
    model: SavedModel,
    *,
    network: str = SPARSE,
    hyperparameters: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write ``model.tar.gz`` as SageMaker's Factorization Machines leave it.

    Parameters
    ----------
    path : str
        Local file; it appears when it is complete.
    model : SavedModel
    network : {"sparse", "dense"}
        Which of SageMaker's two networks. The sparse one holds rows of the features that
        the model has rows for; the dense one holds all of them.
    hyperparameters : mapping of str to str, optional
        Those of the training, by SageMaker's names, beside those that came with the model.
    max_bytes : int
        Most bytes of parameters in the dense network.

    Raises
    ------
    InvalidParamError
        For an unknown network, and a dense one that would be too large.

    Notes
    -----
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
    # The zip must be complete before the tar can say how long it is.
    with replacing(path) as place, tempfile.TemporaryFile(dir=os.path.dirname(place)) as inner:
        _write_zip(cast(BinaryIO, inner), documents, arrays)
        size = inner.tell()
        inner.seek(0)
        with open(place, "wb") as out, gzip.GzipFile("", "wb", COMPRESSION, out, 0) as zipped:
            member = tarfile.TarInfo(MEMBER)
            member.size, member.mode = size, 0o644
            with tarfile.open(
                fileobj=cast(BinaryIO, zipped), mode="w", format=tarfile.PAX_FORMAT
            ) as archive:
                archive.addfile(member, inner)


def symbol_of(model: SavedModel, network: str) -> dict[str, Any]:
    """Return MXNet's description of the network, which scores as the model does.

    Parameters
    ----------
    model : SavedModel
    network : {"sparse", "dense"}

    Notes
    -----
    Input ``data``, label ``out_label``, output ``out``. The score is the sum-of-squares
    form of Rendle 2010, eq. (5).
    """
    n, k = model.weights.feature_dim, model.weights.k
    graph = _Graph()
    nodes = _sparse_score(graph, n, k) if network == SPARSE else _dense_score(graph, n, k)
    kind = KINDS[model.loss]
    head = next(operator for operator, told in HEADS.items() if told == kind)
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
        with archive.open(_zip_member("params"), "w", force_zip64=_is_large(arrays)) as stream:
            named = [(f"{ARGUMENT}{name}", array) for name, array in arrays]
            write_ndarrays(cast(BinaryIO, stream), named)


def _meta_of(model: SavedModel, hyperparameters: Mapping[str, str]) -> dict[str, Any]:
    origin = model.facts.get("origin") or {}
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
