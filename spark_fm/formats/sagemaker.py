"""Read the artifact of SageMaker's Factorization Machines, without MXNet.

``model.tar.gz`` holds ``model_algo-1``, a zip of ``symbol.json`` (the network), ``params``
(its arrays) and ``meta.json`` (the training's hyperparameters). All of it is untrusted.
"""

from __future__ import annotations

import io
import json
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.archives import MAX_BYTES, read_members, read_zip
from spark_fm.formats.artifact import LOSSES, SavedModel
from spark_fm.formats.exchanging import check_sizes, checked_weights, imported_model
from spark_fm.formats.ndarrays import RowSparse, Stored, read_ndarrays, to_dense
from spark_fm.learner.weights import FMWeights

LAYER = "model_algo-"
META = "meta.json"
SPARSE, DENSE = "sparse", "dense"
# Factors, linear weights and bias of each network.
NAMES = {
    SPARSE: ("v", "w1_weight", "w0_weight"),
    DENSE: ("v", "Linear_Plus_Bias_weight", "Linear_Plus_Bias_bias"),
}
SWITCHES = ("", "use_linear", "use_bias")  # with which a network has no such array
# Layers of MXNet whose loss tells the kind of model.
HEADS = {
    "LogisticRegressionOutput": "binary_classifier",
    "LinearRegressionOutput": "regressor",
}
ARGUMENT = "arg:"
LINEAR_LEARNER = "additional-params.json"


@dataclass(frozen=True, slots=True, eq=False)
class SageMakerArtifact:
    """What lies in an artifact of an algorithm of SageMaker that uses MXNet.

    Parameters
    ----------
    source : str
        Where it was read.
    arrays : dict of str to array
        By name, without MXNet's ``arg:``; None where MXNet saved none.
    symbol : dict
        The network; empty when it is not there.
    documents : dict
        The other JSON members by name, such as ``meta.json``.
    """

    source: str
    arrays: dict[str, Stored | None]
    symbol: dict[str, Any]
    documents: dict[str, Any]

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
        """What ``meta.json`` or the network's last layer says; None when neither does."""
        told = self.hyperparameters.get("predictor_type")
        if told is not None:
            if told not in LOSSES:
                raise ModelFormatError(
                    f"{self.source} has predictor_type {told!r} in {META}; expected "
                    f"{' or '.join(LOSSES)}."
                )
            return str(told)
        nodes = self.symbol.get("nodes", [])
        operators = {node.get("op") for node in nodes if isinstance(node, dict)}
        kinds = {kind for operator, kind in HEADS.items() if operator in operators}
        return kinds.pop() if len(kinds) == 1 else None

    def describe(self) -> str:
        """Say in a few words what the artifact is."""
        arrays = ", ".join(
            f"{name} {'without a shape' if array is None else array.shape}"
            for name, array in list(self.arrays.items())[:10]
        )
        if LINEAR_LEARNER in self.documents:
            return f"a model of SageMaker's linear learner (arrays {arrays})"
        if self.network:
            return f"a factorization machine, {self.network} network (arrays {arrays})"
        return f"another network of MXNet (arrays {arrays or 'none'})"


def open_sagemaker(path: str, *, max_bytes: int = MAX_BYTES) -> SageMakerArtifact:
    """Open an artifact down to its arrays.

    Parameters
    ----------
    path : str
        ``model.tar.gz``, the zip ``model_algo-1`` in it, or a folder with what either
        unpacks to; of a store too, such as ``s3://``, but for folders.
    max_bytes : int
        Most bytes that a layer may unpack to.

    Raises
    ------
    ModelFormatError
        For what is no artifact, is damaged, or is refused as dangerous.

    Notes
    -----
    Nothing is written to disk. In memory: about twice the size of ``params``.
    """
    members = read_members(path, _is_wanted, max_bytes=max_bytes)
    layers = [name for name in members if _base(name).startswith(LAYER)]
    if layers:
        layer = min(layers)
        inner = io.BytesIO(members[layer])
        members = read_zip(inner, _is_wanted, f"{path}: {layer}", max_bytes=max_bytes)
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
    for name, array in read_ndarrays(found[params[0]], source=source):
        plain = name.removeprefix(ARGUMENT)
        if plain in arrays:
            raise ModelFormatError(f"{source} has two arrays called {plain!r}.")
        arrays[plain] = array
    return SageMakerArtifact(path, arrays, symbol, documents)


def read_sagemaker(
    path: str,
    *,
    predictor_type: str | None = None,
    threshold: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> SavedModel:
    """Read an artifact of SageMaker's Factorization Machines.

    Parameters
    ----------
    path : str
        As in ``open_sagemaker``.
    predictor_type : {"binary_classifier", "regressor"}, optional
        Needed when neither ``meta.json`` nor the network tells.
    threshold : float, optional
        Score from which the label is 1; default 0.5, as SageMaker has it.
    max_bytes : int
        Most bytes that a layer may unpack to.

    Returns
    -------
    SavedModel
        ``facts["origin"]`` keeps the training's hyperparameters.

    Raises
    ------
    ModelFormatError
        For an artifact of something else, and what ``open_sagemaker`` refuses.
    InvalidParamError
        When the kind of model is not known, or is another than the one asked for.
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
        threshold = float(kept) if isinstance(kept, int | float) else 0.5
    origin = {
        "format": "sagemaker",
        "network": network,
        "hyperparameters": artifact.hyperparameters,
    }
    return imported_model(weights, kind, threshold=threshold, origin=origin)


def _kind_of(artifact: SageMakerArtifact, asked: str | None) -> str:
    told = artifact.predictor_type
    if told is None and asked is None:
        raise InvalidParamError(
            f"{artifact.source} does not tell whether it is a classifier or a regressor: pass "
            'predictorType="binary_classifier" or "regressor" (--predictor-type).'
        )
    if told is not None and asked is not None and told != asked:
        raise InvalidParamError(
            f"predictorType={asked!r} was asked for, but {artifact.source} is a {told}. Leave "
            "predictorType out."
        )
    return str(told or asked)


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
        return array.astype(np.float32)  # what grows infinite is refused by checked_weights


def _plain(array: Stored, what: str, max_bytes: int) -> NDArray[Any]:
    return to_dense(array, max_bytes=max_bytes, what=what)


def _check_size(artifact: SageMakerArtifact, name: str, size: int) -> None:
    told = artifact.hyperparameters.get(name)
    try:
        agrees = told is None or float(told) == size
    except (TypeError, ValueError, OverflowError):
        agrees = False
    if not agrees:
        raise ModelFormatError(
            f"{artifact.source} has {name} {told!r} in {META}, but arrays of {size:,}. The file "
            "is damaged, or put together from two."
        )


def _json(data: bytes, path: str, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ModelFormatError(f"{path} has a {name} that is no JSON: {err}.") from err


def _base(name: str) -> str:
    return posixpath.basename(name)


def _is_params(name: str) -> bool:
    return name == "params" or name.endswith(".params")


def _is_wanted(name: str) -> bool:
    base = _base(name)
    return base.startswith(LAYER) or base.endswith(".json") or _is_params(base)
