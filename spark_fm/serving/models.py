"""A model as the workers share it: arrays mapped from files that one process wrote.

The supervisor has a short-lived process read, check and publish a model; the workers map
what it wrote. So the model is in memory once, however many workers there are, and the
memory that reading took goes back with the process that read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
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
from spark_fm.learner.predict import predicted_labels
from spark_fm.learner.spec import LossName
from spark_fm.learner.weights import FMWeights
from spark_fm.serving.settings import CURRENT, current_name, write_whole

if TYPE_CHECKING:
    from spark_fm.formats.models.native import SavedModel

CHECKED_ROWS = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version of a model, ready to score.

    Parameters
    ----------
    weights : FMWeights
        Its arrays are mapped, read-only.
    loss : {"logistic", "squared"}
    threshold : float
        Label 1 from this score on; of a classifier.
    digest : str
        Of all that decides about scores and labels.
    version : str
        Of the spark_fm that saved the model.
    name : str
        Of the version's folder in the shared folder.
    """

    weights: FMWeights
    loss: LossName
    threshold: float
    digest: str
    version: str
    name: str

    def predict(self, batch: CsrBatch) -> NDArray[np.float32]:
        """Return the scores of rows, float32 of shape (n_rows,)."""
        return self.weights.predict(batch, self.loss)

    def labels(self, scores: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return 1.0 from the threshold on and else 0.0; None for a regressor."""
        if self.loss == "squared":
            return None
        return predicted_labels(scores, self.threshold)

    def describe(self) -> dict[str, object]:
        """Return what ``/health`` tells about the model."""
        return {
            "digest": self.digest,
            "spark_fm_version": self.version,
            "predictor_type": "regressor" if self.loss == "squared" else "binary_classifier",
            "feature_dim": self.weights.feature_dim,
            "num_factors": self.weights.k,
            "threshold": None if self.loss == "squared" else self.threshold,
        }


def publish(path: str, shared: Path, name: str) -> str:
    """Read a saved model, check it, and make it the version that workers serve.

    Parameters
    ----------
    path : str
        A model folder, of any store that pyarrow or fsspec knows; or SageMaker's
        ``model.tar.gz`` or ``model_algo-1``.
    shared : Path
        The private folder of this server.
    name : str
        Of the new version; sorts after those before it.

    Returns
    -------
    str
        The model's digest. Nothing is written when it is the current one's.

    Raises
    ------
    ModelFormatError
        For what is no whole model, or one with parameters that are not finite.
    """
    saved = _read(path)
    weights = saved.weights
    facts = {
        "bias": weights.bias.hex(),
        "feature_dim": weights.feature_dim,
        "loss": saved.loss,
        "threshold": float(saved.params["threshold"]),
        "version": str(saved.facts["version"]),
    }
    seed = json.dumps([facts, _digest_of(saved)], sort_keys=True)
    digest = hashlib.sha256(seed.encode()).hexdigest()
    current = current_name(shared)
    if current is not None and open_model(shared, current).digest == digest:
        return digest
    if not np.isfinite(weights.bias) or not all(
        np.isfinite(part).all() for part in _parts(weights.table)
    ):
        raise ModelFormatError(f"{path} has parameters that are not finite. Train it again.")
    folder = shared / name
    folder.mkdir(mode=0o700)
    np.save(folder / "table.npy", weights.table)
    if weights.features is not None:
        np.save(folder / "features.npy", weights.features)
    held = {"digest": digest, "n_rows": len(weights.table), "ids": weights.features is not None}
    (folder / "facts.json").write_text(json.dumps(facts | held))
    warm_up(open_model(shared, name))
    write_whole(shared / CURRENT, name)
    return digest


def open_model(shared: Path, name: str) -> ServedModel:
    """Map a published version; O(1) memory of this process.

    Raises
    ------
    OSError
        When the version, or a part of it, has been removed for a newer one: look at
        ``current_name`` again.
    """
    folder = shared / name
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    # Asked of the facts, not of the folder: without its ids a table would score any features.
    weights = FMWeights(
        bias=float.fromhex(facts["bias"]),
        table=_mapped(folder / "table.npy", facts["n_rows"]),
        feature_dim=facts["feature_dim"],
        features=_mapped(folder / "features.npy", facts["n_rows"]) if facts["ids"] else None,
    )
    return ServedModel(
        weights, facts["loss"], facts["threshold"], facts["digest"], facts["version"], name
    )


def warm_up(model: ServedModel) -> None:
    """Answer a request of each format, so that all is compiled before the first one.

    The process that publishes a model does so first and leaves the machine code in the
    cache on disk, from which workers load it.
    """
    width = model.weights.feature_dim
    row = sp.csr_array(([0.0], [0], [0, 1]), shape=(1, width))
    for content_type in CONTENT_TYPES:
        body = encode_request(row, content_type)
        scores = model.predict(decode_request(body, content_type, feature_dim=width))
        encode_response(scores, model.labels(scores), content_type)


def _read(path: str) -> SavedModel:
    if os.path.isfile(path):
        from spark_fm.formats.models.sagemaker import read_sagemaker

        return read_sagemaker(path)
    from spark_fm.formats.models.native import read_model

    return read_model(path)


def _digest_of(saved: SavedModel) -> str:
    from spark_fm.formats.models.native import model_arrays, model_metadata

    if "sha256" in saved.facts:
        return str(saved.facts["sha256"])
    return str(model_metadata(saved.weights, model_arrays(saved.weights, None), None)["sha256"])


def _mapped(path: Path, n_rows: int) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    if len(mapped) != n_rows:
        raise OSError(f"{path} has {len(mapped)} rows instead of {n_rows}.")
    # Not np.memmap: every view and result of one would be a memmap, too.
    return mapped.view(np.ndarray)


def _parts(table: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(table), CHECKED_ROWS):
        yield table[start : start + CHECKED_ROWS]
