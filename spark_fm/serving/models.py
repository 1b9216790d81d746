"""A model as the workers share it: arrays mapped from files that one process wrote.

A short-lived process reads, checks and publishes a model; the workers map what it wrote. So
the model is in memory once, however many workers there are, and the memory that reading took
is freed when that process ends.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import ModelFormatError
from spark_fm.formats.requests import CONTENT_TYPES, decode_request, encode_request
from spark_fm.formats.responses import encode_response
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.predict import predicted_labels
from spark_fm.learner.spec import LossName
from spark_fm.learner.weights import FMWeights
from spark_fm.serving.settings import CURRENT, current_name, write_atomically

if TYPE_CHECKING:
    from spark_fm.formats.models.native import SavedModel

CHECKED_ROWS = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version of a model, ready to score."""

    weights: FMWeights  # its arrays are mapped, read-only
    loss: LossName
    threshold: float  # of a classifier: label 1 from this score on
    digest: str  # of everything that determines scores and labels
    version: str  # of the spark_fm that saved the model
    name: str  # of its folder in the shared folder

    def predict(self, batch: CsrBatch) -> NDArray[np.float32]:
        """Return the scores of rows, of shape (n_rows,)."""
        return self.weights.predict(batch, self.loss)

    def labels(self, scores: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return label 1.0 for scores from the threshold on, else 0.0; None of a regressor."""
        if not LOSSES[self.loss].is_classifier:
            return None
        return predicted_labels(scores, self.threshold)

    def example_request(self) -> dict[str, object]:
        """Return the content of a request for the score of one row, as JSON."""
        ids = self.weights.features
        keys = [0, 1] if ids is None else ids[:2].tolist()
        keys = [key for key in keys if key < self.weights.feature_dim]
        features = {"keys": keys, "shape": [self.weights.feature_dim], "values": [1.0] * len(keys)}
        return {"instances": [{"data": {"features": features}}]}

    def describe(self) -> dict[str, object]:
        """Return what ``/health`` shows of the model."""
        return {
            "digest": self.digest,
            "spark_fm_version": self.version,
            "predictor_type": LOSSES[self.loss].predictor_type,
            "feature_dim": self.weights.feature_dim,
            "num_factors": self.weights.k,
            "threshold": self.threshold if LOSSES[self.loss].is_classifier else None,
        }


def publish(path: str, shared: Path, name: str, *, predictor_type: str | None = None) -> str:
    """Read a saved model, check it, make it the version that workers serve; return its digest.

    ``path`` is a model folder, of any store that pyarrow or fsspec knows, or SageMaker's
    artifact as `open_sagemaker` takes it, with ``predictor_type`` if it has none. ``name`` is
    the new version's folder in ``shared``. Nothing is written when the model is the current one.
    """
    saved = _read(path, predictor_type)
    weights = saved.weights
    metadata = {
        "bias": weights.bias.hex(),
        "feature_dim": weights.feature_dim,
        "loss": saved.loss,
        "threshold": float(saved.params["threshold"]),
        "version": str(saved.metadata["version"]),
    }
    content = json.dumps([metadata, _digest_of(saved)], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    current = current_name(shared)
    if current is not None and open_model(shared, current).digest == digest:
        return digest
    table = weights.table
    if not np.isfinite(weights.bias) or not all(
        np.isfinite(table[start : start + CHECKED_ROWS]).all()
        for start in range(0, len(table), CHECKED_ROWS)
    ):
        raise ModelFormatError(f"{path} has parameters that are not finite. Train it again.")
    folder = shared / name
    folder.mkdir(mode=0o700)
    np.save(folder / "table.npy", table)
    has_features = weights.features is not None
    if weights.features is not None:
        np.save(folder / "features.npy", weights.features)
    metadata |= {"digest": digest, "n_rows": len(table), "has_features": has_features}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    warm_up(open_model(shared, name))
    write_atomically(shared / CURRENT, name)
    return digest


def open_model(shared: Path, name: str) -> ServedModel:
    """Map a published version, in O(1) memory of this process.

    Raises OSError when the version, or a part of it, has been removed for a newer one: the
    caller reads ``current_name`` again.
    """
    folder = shared / name
    metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text())
    # Not whether the file exists: without its ids a table would score any features.
    features = _map(folder / "features.npy", metadata) if metadata["has_features"] else None
    weights = FMWeights(
        bias=float.fromhex(metadata["bias"]),
        table=_map(folder / "table.npy", metadata),
        feature_dim=metadata["feature_dim"],
        features=features,
    )
    return ServedModel(
        weights,
        metadata["loss"],
        metadata["threshold"],
        metadata["digest"],
        metadata["version"],
        name,
    )


def _map(path: Path, metadata: dict[str, Any]) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    if len(mapped) != metadata["n_rows"]:
        raise OSError(f"{path} has {len(mapped)} rows instead of {metadata['n_rows']}.")
    # Not np.memmap: every view and result of one would be a memmap, too.
    return mapped.view(np.ndarray)


def warm_up(model: ServedModel) -> None:
    """Answer a request of each format, so that everything is compiled before the first one.

    The process that publishes a model does this first and leaves the machine code in the
    cache on disk, from which workers load it.
    """
    width = model.weights.feature_dim
    row = sp.csr_array(([0.0], [0], [0, 1]), shape=(1, width))
    for content_type in CONTENT_TYPES:
        body = encode_request(row, content_type)
        scores = model.predict(decode_request(body, content_type, feature_dim=width))
        encode_response(scores, model.labels(scores), content_type)


def _read(path: str, predictor_type: str | None) -> SavedModel:
    from spark_fm.formats.models.native import read_model
    from spark_fm.formats.models.sagemaker import is_artifact, read_sagemaker

    if is_artifact(path):
        return read_sagemaker(path, predictor_type=predictor_type)
    return read_model(path)


def _digest_of(saved: SavedModel) -> str:
    from spark_fm.formats.models.native import model_arrays, model_metadata

    if "sha256" in saved.metadata:
        return str(saved.metadata["sha256"])
    return str(model_metadata(saved.weights, model_arrays(saved.weights, None), None)["sha256"])
