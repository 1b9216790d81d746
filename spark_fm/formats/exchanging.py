"""Models on their way in and out: what other formats know of a model, and our own folder.

Everything that is read from another format becomes a ``SavedModel`` with the Params that
scoring needs, and every writer takes one.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import shutil
import time
import uuid
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow.fs as pafs
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.artifact import (
    LOSSES,
    MODEL_CLASS,
    SavedModel,
    model_arrays,
    model_facts,
    write_model,
)
from spark_fm.formats.files import store_of
from spark_fm.learner.csr import MAX_FEATURE_ID
from spark_fm.learner.spec import MAX_FACTORS
from spark_fm.learner.weights import FMWeights

# Of the Params that scoring without Spark looks at; those of ml.params have the same.
SCORING_DEFAULTS: dict[str, Any] = {
    "featuresCol": "features",
    "labelCol": "label",
    "scoreCol": "score",
    "predictedLabelCol": "predicted_label",
    "threshold": 0.5,
    "predictorType": "binary_classifier",
    "handleInvalid": "error",
}
# Spark's reader asks which Spark wrote the metadata; this layout is that of 2.4 and newer.
METADATA_VERSION = "4.0.0"


def imported_model(
    weights: FMWeights, predictor_type: str, *, threshold: float, origin: dict[str, Any]
) -> SavedModel:
    """Return a model that came from another format.

    Parameters
    ----------
    weights : FMWeights
    predictor_type : {"binary_classifier", "regressor"}
    threshold : float
        Score from which the label is 1.
    origin : dict
        Where the model comes from, kept with it: ``format``, ``hyperparameters``, ...
    """
    if predictor_type not in LOSSES:
        raise InvalidParamError(
            f"predictorType={predictor_type!r} is not allowed: expected {' or '.join(LOSSES)}."
        )
    if not 0 <= threshold <= 1:
        raise InvalidParamError(f"threshold={threshold!r} is not allowed: expected 0 to 1.")
    params = {
        "predictorType": predictor_type,
        "threshold": threshold,
        "numFactors": weights.k,
        "featureDim": weights.feature_dim,
    }
    facts = {"version": __version__, "summary": None, "origin": origin}
    loss = LOSSES[predictor_type]
    return SavedModel(weights, loss, {**SCORING_DEFAULTS, **params}, facts, None)


def checked_weights(
    bias: float,
    table: NDArray[np.float32],
    feature_dim: int,
    *,
    features: NDArray[np.int32] | None = None,
    source: str,
) -> FMWeights:
    """Return parameters that came from a file, or say why no model can have them.

    Raises
    ------
    ModelFormatError
        For sizes outside the legal ranges, and for NaN and infinite parameters.
    """
    check_sizes(feature_dim, table.shape[1] - 1, source)
    # A sum is finite only if all its terms are, and takes no mask as large as the table.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = math.isfinite(float(table.sum(dtype=np.float64)))
    if not finite and not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        feature = row if features is None else int(features[row])
        raise ModelFormatError(
            f"{source} has a NaN or infinite parameter of feature {feature}: its training "
            "diverged, or the file is damaged."
        )
    if not math.isfinite(bias):
        raise ModelFormatError(f"{source} has the bias {bias}: its training diverged.")
    return FMWeights(bias, table, feature_dim, features)


def check_sizes(feature_dim: int, k: int, source: str) -> None:
    """Raise ModelFormatError for sizes that no model has."""
    if not 1 <= feature_dim <= MAX_FEATURE_ID + 1 or not 1 <= k <= MAX_FACTORS:
        raise ModelFormatError(
            f"{source} has {feature_dim:,} features and {k:,} factors; 1 to "
            f"{MAX_FEATURE_ID + 1:,} features and 1 to {MAX_FACTORS:,} factors are allowed."
        )


def full_table(model: SavedModel, *, max_bytes: int, what: str, instead: str) -> NDArray[Any]:
    """Return the parameter table with a row for every feature.

    Raises
    ------
    InvalidParamError
        When a table of the features seen would grow beyond ``max_bytes``.
    """
    weights = model.weights
    if weights.features is None:
        return weights.table
    n_bytes = weights.feature_dim * weights.table.shape[1] * 4
    if n_bytes > max_bytes:
        raise InvalidParamError(
            f"{what} lists all {weights.feature_dim:,} features of the model, {n_bytes:,} bytes "
            f"of parameters; at most {max_bytes:,} are written. The model has rows for "
            f"{len(weights.features):,} of them: {instead}."
        )
    table = np.zeros((weights.feature_dim, weights.table.shape[1]), np.float32)
    table[weights.features] = weights.table
    return table


def save_model(path: str, model: SavedModel, *, overwrite: bool = False) -> None:
    """Write a model folder that Spark and ``read_model`` load; needs no Spark.

    Parameters
    ----------
    path : str
        Local, or of any store that pyarrow or fsspec knows.
    model : SavedModel
    overwrite : bool
        Replace a model, or an empty folder, that is there; anything else is never
        replaced.

    Raises
    ------
    InvalidParamError
        When something is there that may not be replaced.

    Notes
    -----
    A local folder appears under its name when it is complete.
    """
    path = path.rstrip("/")
    check_place(path, overwrite=overwrite)
    arrays = model_arrays(model.weights, model.state)
    facts = model_facts(
        model.weights, arrays, model.facts.get("summary"), origin=model.facts.get("origin")
    )
    set_params = {n: v for n, v in model.params.items() if SCORING_DEFAULTS.get(n) != v}
    metadata = {
        "class": MODEL_CLASS,
        "timestamp": round(time.time() * 1000),
        "sparkVersion": METADATA_VERSION,
        "uid": f"FactorizationMachineModel_{uuid.uuid4().hex[-12:]}",
        "paramMap": set_params,
        "defaultParamMap": SCORING_DEFAULTS,
        "spark_fm": facts,
    }
    text = json.dumps(metadata, separators=(",", ":"))
    store, inner = store_of(path)
    if not isinstance(store, pafs.LocalFileSystem):
        _replace_remote(store, path, inner, text, arrays)
        return
    inner = os.path.realpath(inner)  # a link stays one, and what it leads to is replaced
    mark = uuid.uuid4().hex[:12]
    temporary, old = f"{inner}.{mark}.tmp", f"{inner}.{mark}.old"
    try:
        write_model(temporary, text, arrays)
        if os.path.isdir(inner):
            os.rename(inner, old)
        try:
            os.rename(temporary, inner)
        except BaseException:
            if os.path.isdir(old):
                os.rename(old, inner)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)  # only now: until here it may be the only copy


def _replace_remote(
    store: Any, path: str, inner: str, metadata: str, arrays: dict[str, NDArray[Any]]
) -> None:
    """Write a model beside the old one; only then remove that one and move the new files."""
    mark = f".{uuid.uuid4().hex[:12]}.tmp"
    try:
        write_model(path + mark, metadata, arrays)
    except BaseException:
        with suppress(OSError):
            store.delete_dir(inner + mark)
        raise
    if store.get_file_info(inner).type == pafs.FileType.Directory:
        store.delete_dir(inner)
    # Object stores have no folders to move.
    for file in store.get_file_info(pafs.FileSelector(inner + mark, recursive=True)):
        if file.is_file:
            target = inner + file.path[len(inner + mark) :]
            store.create_dir(posixpath.dirname(target), recursive=True)
            store.move(file.path, target)
    store.delete_dir(inner + mark)


def check_place(path: str, *, overwrite: bool) -> None:
    """Raise InvalidParamError when a model folder cannot be put at ``path``."""
    store, inner = store_of(path.rstrip("/"))
    info = store.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        return
    if not overwrite:
        raise InvalidParamError(f"{path} exists; give another path, or --overwrite.")
    if info.type == pafs.FileType.Directory:
        names = {entry.base_name for entry in store.get_file_info(pafs.FileSelector(inner))}
        if names <= {"data", "metadata"}:
            return
    raise InvalidParamError(f"{path} is no model folder, and is not replaced; give another path.")
