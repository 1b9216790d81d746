"""``spark-fm inspect``: a model's kind and content; no Spark or Java."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from spark_fm.cli.errors import UsageError
from spark_fm.cli.outputs import to_json_safe
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.files import BYTE_ORDER_MARK, open_plain_file, store_of
from spark_fm.formats.models.archives import MAX_BYTES
from spark_fm.formats.models.libfm import SECTIONS, read_libfm
from spark_fm.formats.models.mxnet import CsrArray, RowSparse, Stored
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.formats.models.sagemaker import SageMakerArtifact, model_of, open_sagemaker
from spark_fm.formats.models.text import FIRST, read_text
from spark_fm.learner.losses import LOSSES

USAGE = "PATH [--json] [more flags]"
EXAMPLE = """examples:
  spark-fm inspect fm.model
  spark-fm inspect model.tar.gz --json
"""
BLOCK = 2**20
KINDS = {"text": "text model of spark_fm", "libfm": "text model of libFM"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH",
        help="a saved model, an artifact of SageMaker (also of another algorithm that uses "
        "MXNet), or a text model of libFM or of 'spark-fm export --to text'",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--max-bytes", type=int, default=MAX_BYTES, metavar="N",
        help="refuse an archive that unpacks to more [%(default)s]",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    if args.max_bytes < 1:
        raise UsageError(f"--max-bytes {args.max_bytes} is not allowed: expected 1 or more.")
    description = {"path": args.path, **_describe(args.path, args.max_bytes)}
    if args.json:
        print(json.dumps(to_json_safe(description), indent=2, allow_nan=False))
    else:
        _show(description)


def _describe(path: str, max_bytes: int) -> dict[str, Any]:
    if _is_saved_model(path):
        return _describe_saved(read_model(path, whole=True))
    if not os.path.isdir(path):
        with open_plain_file(path) as stream:
            head = bytes(stream.read(len(BYTE_ORDER_MARK) + len(FIRST))).removeprefix(
                BYTE_ORDER_MARK
            )
        if head.startswith(FIRST.encode()):
            return _describe_file("text", read_text(path), path)
        if any(head.startswith(title.encode()) for title in SECTIONS):
            # The file does not contain the predictor type; the rest holds for either.
            model = read_libfm(path, predictor_type="regressor")
            return {**_describe_file("libfm", model, path), "predictor_type": None}
    return _describe_artifact(open_sagemaker(path, max_bytes=max_bytes), max_bytes)


def _is_saved_model(path: str) -> bool:
    """Return whether a path has a saved model's metadata; a folder in a store always should."""
    store, inner = store_of(path)
    inner = inner.rstrip("/")
    folder, metadata = store.get_file_info([inner, f"{inner}/metadata"])
    if folder.type == pafs.FileType.NotFound:
        raise InvalidDataError(f"Path does not exist: {path}")
    return bool(metadata.type == pafs.FileType.Directory)


def _describe_saved(model: SavedModel) -> dict[str, Any]:
    metadata = model.metadata
    description = {
        "kind": "model of spark_fm",
        "version": metadata["version"],
        "format_version": metadata["format_version"],
        **_describe_model(model),
        "digests": {
            "verified": True,  # by reading it
            "metadata": metadata["sha256"],
            **{name: array["sha256"] for name, array in metadata["arrays"].items()},
        },
        "training_state": model.state is not None,
        "draws": 0 if model.posterior is None else len(model.posterior.members),
        "params": model.params,
    }
    origin = metadata.get("origin")
    if origin:
        description["origin"] = {n: v for n, v in origin.items() if n != "hyperparameters"}
        description["hyperparameters"] = origin.get("hyperparameters", {})
    if metadata.get("summary"):
        description["summary"] = _describe_summary(metadata["summary"])
    return description


def _describe_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a training, and those of its best epoch."""
    metrics = {n: v for n, v in summary["facts"].items() if not isinstance(v, dict)}
    rows, best = summary["rows"], metrics.get("bestEpoch")
    if isinstance(best, int) and best < len(rows):
        metrics["atBestEpoch"] = {
            name: value for name, value in rows[best].items() if isinstance(value, int | float)
        }
    return metrics


def _describe_model(model: SavedModel) -> dict[str, Any]:
    weights = model.weights
    return {
        "predictor_type": model.params["predictorType"],
        "threshold": model.params["threshold"] if LOSSES[model.loss].is_classifier else None,
        "feature_dim": weights.feature_dim,
        "num_factors": weights.k,
        "features_with_parameters": len(weights.table),
        "parameters": weights.table.size + 1,
        "bytes": weights.table.nbytes,
        "bias": weights.bias,
        "largest_linear_weight": _largest(weights.linear),
        "largest_factor": _largest(weights.factors),
    }


def _largest(array: np.ndarray[Any, Any]) -> float:
    """Return the largest magnitude, without a copy of the array."""
    return float(max(array.max(), -array.min())) if array.size else 0.0


def _describe_file(kind: str, model: SavedModel, path: str) -> dict[str, Any]:
    return {"kind": KINDS[kind], **_describe_model(model), "sha256": _sha256(path)}


def _describe_artifact(artifact: SageMakerArtifact, max_bytes: int) -> dict[str, Any]:
    description: dict[str, Any] = {"kind": "artifact of SageMaker", "what": artifact.describe()}
    if artifact.network is not None:
        try:
            description.update(_describe_model(model_of(artifact, max_bytes=max_bytes)))
        except InvalidParamError:  # its predictor type is not known; the sizes are the same
            model = model_of(artifact, predictor_type="regressor", max_bytes=max_bytes)
            description.update({**_describe_model(model), "predictor_type": None})
        description["network"] = artifact.network
        description["written_by"] = (
            f"spark_fm {artifact.ours.get('version')}" if artifact.ours else None
        )
        description["hyperparameters"] = artifact.hyperparameters
    else:
        description["predictor_type"] = artifact.predictor_type
    description["arrays"] = {
        name: _describe_array(array) for name, array in artifact.arrays.items()
    }
    description["documents"] = {n: d for n, d in artifact.documents.items() if n != "meta.json"}
    if not os.path.isdir(artifact.source):
        description["sha256"] = _sha256(artifact.source)
    return description


def _describe_array(array: Stored | None) -> dict[str, Any] | None:
    if array is None:
        return None
    data = array if isinstance(array, np.ndarray) else array.data
    storage = {RowSparse: "row_sparse", CsrArray: "csr"}.get(type(array), "dense")
    return {"storage": storage, "type": str(data.dtype), "shape": list(array.shape)}


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open_plain_file(path) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _show(description: dict[str, Any], indent: str = "") -> None:
    width = max((len(name) for name in description), default=0)
    for name, value in description.items():
        if not isinstance(value, dict):
            print(f"{indent}{_printable(name):<{width}}  {_shown(value)}")
        elif value:
            print(f"{indent}{_printable(name)}")
            _show(value, indent + "  ")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return _printable(", ".join(map(str, value))) or "-"
    return _printable(str(value))


def _printable(text: str) -> str:
    """Return text in one line, without a terminal's control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
