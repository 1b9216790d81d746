"""Read a model of SageMaker's Factorization Machines out of its artifact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.archives import MAX_BYTES
from spark_fm.formats.artifact import SavedModel
from spark_fm.formats.exchanging import check_sizes, checked_weights, imported_model
from spark_fm.formats.ndarrays import RowSparse, Stored, to_dense
from spark_fm.formats.sagemaker_artifact import (
    DENSE,
    META,
    NAMES,
    SageMakerArtifact,
    open_sagemaker,
)
from spark_fm.learner.weights import FMWeights

SWITCHES = ("", "use_linear", "use_bias")  # with which a network has no such array


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
        return array.astype(
            np.float32, copy=False
        )  # what grows infinite is refused by checked_weights


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
