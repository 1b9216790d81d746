"""Small models in folders, written without Spark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spark_fm.formats.models.native import (
    MODEL_CLASS,
    SCORING_DEFAULTS,
    model_arrays,
    model_metadata,
    write_model,
)
from spark_fm.learner.weights import FMWeights


def saved_model(path: Path, *, kind: str = "binary_classifier", n_features: int = 4) -> str:
    """Write a model of planted weights and return its folder."""
    rng = np.random.default_rng(5)
    table = rng.normal(size=(n_features, 3)).astype(np.float32)
    weights = FMWeights(bias=0.25, table=table, feature_dim=n_features)
    arrays = model_arrays(weights, None)
    metadata = {
        "class": MODEL_CLASS,
        "defaultParamMap": {**SCORING_DEFAULTS, "predictorType": kind, "threshold": 0.5},
        "paramMap": {},
        "spark_fm": model_metadata(weights, arrays, None),
    }
    write_model(str(path), json.dumps(metadata), arrays)
    return str(path)
