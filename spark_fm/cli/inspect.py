"""``spark-fm inspect``: what a model is and holds; needs neither Spark nor Java."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from spark_fm.cli.errors import UsageError
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.files import open_plain_file, store_of
from spark_fm.formats.models.archives import MAX_BYTES
from spark_fm.formats.models.libfm import SECTIONS, read_libfm
from spark_fm.formats.models.mxnet import CsrArray, RowSparse, Stored
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.formats.models.sagemaker import SageMakerArtifact, model_of, open_sagemaker
from spark_fm.formats.models.text import FIRST, read_text

USAGE = "PATH [--json] [more flags]"
EXAMPLE = """examples:
  spark-fm inspect fm.model
  spark-fm inspect model.tar.gz --json
"""
BLOCK = 2**20
KINDS = {"text": "text model of spark_fm", "libfm": "text model of libFM"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
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
    """Print what is there; what is damaged is an error."""
    if args.max_bytes < 1:
        raise UsageError(f"--max-bytes {args.max_bytes} is not allowed: expected 1 or more.")
    found = {"path": args.path, **_inspected(args.path, args.max_bytes)}
    if args.json:
        print(json.dumps(_json_safe(found), indent=2, allow_nan=False))
    else:
        _show(found)


def _inspected(path: str, max_bytes: int) -> dict[str, Any]:
    if _is_folder_of_ours(path):
        return _of_folder(read_model(path))
    if not os.path.isdir(path):
        with open_plain_file(path) as stream:
            head = bytes(stream.read(len(FIRST)))
        if head == FIRST.encode():
            return _of_file("text", read_text(path), path)
        if any(head.startswith(title.encode()) for title in SECTIONS):
            return _of_libfm(path)
    return _of_artifact(open_sagemaker(path, max_bytes=max_bytes), max_bytes)


def _is_folder_of_ours(path: str) -> bool:
    """Tell a saved model by its metadata; a folder of a store can be nothing else."""
    store, inner = store_of(path.rstrip("/"))
    places = store.get_file_info([inner, f"{inner}/metadata"])
    if places[0].type == pafs.FileType.NotFound:
        raise InvalidDataError(f"Path does not exist: {path}")
    return bool(places[1].type == pafs.FileType.Directory)


def _of_folder(model: SavedModel) -> dict[str, Any]:
    facts = model.metadata
    found = {
        "kind": "model of spark_fm",
        "version": facts["version"],
        "format_version": facts["format_version"],
        **_of_model(model),
        "digests": {
            "verified": True,  # or it would not have been read
            "metadata": facts["sha256"],
            **{name: form["sha256"] for name, form in facts["arrays"].items()},
        },
        "training_state": model.state is not None,
        "params": model.params,
    }
    origin = facts.get("origin")
    if origin:
        found["origin"] = {n: v for n, v in origin.items() if n != "hyperparameters"}
        found["hyperparameters"] = origin.get("hyperparameters", {})
    if facts.get("summary"):
        found["summary"] = _of_summary(facts["summary"])
    return found


def _of_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a training, and the figures of its best epoch."""
    facts = {n: v for n, v in summary["facts"].items() if not isinstance(v, dict)}
    rows, best = summary["rows"], facts.get("bestEpoch")
    if isinstance(best, int) and best < len(rows):
        facts["atBestEpoch"] = {
            name: value for name, value in rows[best].items() if isinstance(value, int | float)
        }
    return facts


def _of_model(model: SavedModel) -> dict[str, Any]:
    weights = model.weights
    n_parameters = weights.table.size + 1
    return {
        "predictor_type": model.params["predictorType"],
        "threshold": model.params["threshold"] if model.loss == "logistic" else None,
        "feature_dim": weights.feature_dim,
        "num_factors": weights.k,
        "features_with_parameters": len(weights.table),
        "parameters": n_parameters,
        "bytes": weights.table.nbytes,
        "bias": weights.bias,
        "largest_linear_weight": _largest(weights.linear),
        "largest_factor": _largest(weights.factors),
    }


def _largest(array: np.ndarray[Any, Any]) -> float:
    """Return the largest magnitude, without a copy of the array."""
    return float(max(array.max(), -array.min())) if array.size else 0.0


def _of_file(kind: str, model: SavedModel, path: str) -> dict[str, Any]:
    return {"kind": KINDS[kind], **_of_model(model), "sha256": _sha256(path)}


def _of_libfm(path: str) -> dict[str, Any]:
    # The file does not tell; what is shown holds for either.
    found = _of_file("libfm", read_libfm(path, predictor_type="regressor"), path)
    return {**found, "predictor_type": None}


def _of_artifact(artifact: SageMakerArtifact, max_bytes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "artifact of SageMaker", "what": artifact.describe()}
    if artifact.network is not None:
        try:
            found.update(_of_model(model_of(artifact, max_bytes=max_bytes)))
        except InvalidParamError:  # its kind is not known; the sizes are the same
            model = model_of(artifact, predictor_type="regressor", max_bytes=max_bytes)
            found.update({**_of_model(model), "predictor_type": None})
        found["network"] = artifact.network
        found["written_by"] = f"spark_fm {artifact.ours.get('version')}" if artifact.ours else None
        found["hyperparameters"] = artifact.hyperparameters
    else:
        found["predictor_type"] = artifact.predictor_type
    found["arrays"] = {name: _of_array(array) for name, array in artifact.arrays.items()}
    found["documents"] = {n: d for n, d in artifact.documents.items() if n != "meta.json"}
    if not os.path.isdir(artifact.source):
        found["sha256"] = _sha256(artifact.source)
    return found


def _of_array(array: Stored | None) -> dict[str, Any] | None:
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


def _json_safe(value: Any) -> Any:
    """Return the value with null for what JSON does not have."""
    if isinstance(value, dict):
        return {str(name): _json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(found: dict[str, Any], indent: str = "") -> None:
    width = max((len(name) for name in found), default=0)
    for name, value in found.items():
        if isinstance(value, dict):
            if value:
                print(f"{indent}{_printable(name)}")
                _show(value, indent + "  ")
            continue
        print(f"{indent}{_printable(name):<{width}}  {_shown(value)}")


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
    """Return text in one line, without what a terminal takes for an order."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
