"""The model folder: what its files hold, how they are checked, and how to read and write them.

A model folder holds ``data`` (Parquet: the chunks of the parameter table and, if the model
has them, of the table of ids and the training state) and ``metadata`` (one line of JSON, as
Spark ML writes it). The metadata holds the digest of every array, and is written last, so an
interrupted save leaves nothing that loads. Models of other formats become a ``SavedModel``
too, with the Params that scoring needs. No Spark.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError, ModelFormatError, SparkFMError
from spark_fm.formats.files import DataFile, files_in, make_folder, path_in, store_of
from spark_fm.formats.models.stages import MODEL_CLASS, parse_metadata, unreadable_metadata
from spark_fm.learner import losses
from spark_fm.learner.csr import MAX_FEATURE_ID, CsrBatch
from spark_fm.learner.spec import MAX_FACTORS, LossName
from spark_fm.learner.training import TrainingState
from spark_fm.learner.weights import FMWeights, Posterior

FORMAT_VERSION = 1
LOSS_OF_PREDICTOR: dict[str, LossName] = {
    loss.predictor_type: loss.name for loss in losses.LOSSES.values()
}
POSTERIOR = "posterior/"  # begins the names of the arrays of draws
STATE = "training/"  # begins the names of the arrays of a training state
CHUNK_BYTES = 4 * 2**20  # of an array in one row of the data
WRITE_BYTES = 64 * 2**20
READ_ROWS = 16
CHUNKS = pa.schema(
    [pa.field("name", pa.string()), pa.field("part", pa.int32()), pa.field("payload", pa.binary())]
)
# Defaults of the Params that scoring without Spark needs; ml.params has the same.
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


@dataclass(frozen=True, slots=True, eq=False)
class SavedModel:
    """A model as it was saved, without Spark ML around it."""

    weights: FMWeights
    loss: LossName
    params: dict[str, Any]  # every Param that is set or has a default, by its camelCase name
    metadata: dict[str, Any]  # ``version`` of the writer, ``summary``, ``origin``, ...
    state: TrainingState | None
    posterior: Posterior | None = None

    def predict(self, batch: CsrBatch) -> NDArray[np.float32]:
        """Return probabilities of label 1, or values; float32 of shape (n_rows,).

        Raises InvalidDataError for an index outside the model's features.
        """
        return self.weights.predict(batch, self.loss)

    def with_threshold(self, threshold: float | None) -> SavedModel:
        """Return the model with another threshold; with its own for None."""
        if threshold is None:
            return self
        return replace(self, params={**self.params, "threshold": threshold})


def read_model(path: str, *, whole: bool = False) -> SavedModel:
    """Read a model folder, as ``model.save(path)`` writes it; local, or of any store.

    What scores do not need, the state of a training and draws, is read of a ``whole`` model only.
    Raises ModelFormatError for a folder that is not a model, is damaged, or comes from a newer
    version. The arrays, the bias and the summary have digests; of the Params only the names
    and ranges are checked.
    """
    try:
        lines = [line for file in files_in(path_in(path, "metadata")) for line in _lines(file)]
    except (SparkFMError, OSError, UnicodeDecodeError) as err:
        raise unreadable_metadata(path, MODEL_CLASS, str(err)) from err
    stage = parse_metadata(lines, path, MODEL_CLASS)
    metadata = check_metadata(stage, path)
    try:
        forms, chunks = metadata["arrays"], _chunks(path_in(path, "data"))
        if not whole:
            unused = {name for name in forms if name.startswith((STATE, POSTERIOR))}
            forms = {name: form for name, form in forms.items() if name not in unused}
            chunks = (chunk for chunk in chunks if chunk[0] not in unused)
        arrays = join_arrays(chunks, forms, path)
        weights, state = weights_of(metadata, arrays), state_of(arrays)
        posterior = posterior_of(weights, arrays)
    except ModelFormatError:
        raise
    except (SparkFMError, OSError, KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(f"{path} is a damaged model: {reason(err)}") from err
    try:
        params = {**stage["defaultParamMap"], **stage["paramMap"]}
        loss = LOSS_OF_PREDICTOR[params["predictorType"]]
        if not 0 <= params["threshold"] <= 1:
            raise ValueError(f"threshold={params['threshold']!r} is outside 0 to 1")
    except (KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(
            f"{path}/metadata has Params that spark_fm {__version__} cannot set: {reason(err)}. "
            "It is damaged, or comes from another spark_fm."
        ) from err
    return SavedModel(weights, loss, params, metadata, state, posterior)


def write_model(path: str, metadata: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a model folder that ``read_model`` and Spark load; ``metadata`` is its JSON line."""
    _write_files(*store_of(path), metadata, arrays)


def _write_files(store: Any, inner: str, metadata: str, arrays: dict[str, NDArray[Any]]) -> None:
    inner = inner.rstrip("/")
    for folder in ("data", "metadata"):
        make_folder(store, f"{inner}/{folder}")
    with (
        store.open_output_stream(f"{inner}/data/part-00000.parquet") as sink,
        pq.ParquetWriter(sink, CHUNKS) as writer,
    ):
        for rows in chunk_rows(arrays):
            writer.write_table(_table(rows))
    with store.open_output_stream(f"{inner}/metadata/part-00000") as sink:
        sink.write(f"{metadata}\n".encode())


def model_arrays(
    weights: FMWeights, state: TrainingState | None, posterior: Posterior | None = None
) -> dict[str, NDArray[Any]]:
    """Return all arrays of a model by name; a state's facts are bytes of JSON."""
    arrays: dict[str, NDArray[Any]] = {"table": weights.table}
    if weights.features is not None:
        arrays["features"] = weights.features
    if state is not None:
        text = np.frombuffer(json.dumps(state.metadata).encode(), np.uint8)
        arrays |= {f"{STATE}{name}": array for name, array in ({"": text} | state.arrays).items()}
    if posterior is not None:
        arrays |= {
            f"{POSTERIOR}tables": np.stack([member.table for member in posterior.members]),
            f"{POSTERIOR}biases": np.array([member.bias for member in posterior.members]),
            f"{POSTERIOR}noise": posterior.noise,
        }
    return arrays


def model_metadata(
    weights: FMWeights,
    arrays: dict[str, NDArray[Any]],
    summary: dict[str, Any] | None,
    *,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a model's part of the metadata, with digests of its arrays and of itself.

    ``origin`` describes where an imported model comes from.
    """
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "bias": weights.bias.hex(),
        "feature_dim": weights.feature_dim,
        "arrays": {
            name: {
                "dtype": array.dtype.newbyteorder("<").str,
                "shape": list(array.shape),
                "sha256": _digest(array),
            }
            for name, array in arrays.items()
        },
        "summary": summary,
    }
    if origin is not None:
        metadata["origin"] = origin
    metadata["sha256"] = _metadata_digest(metadata)
    return metadata


def chunk_rows(arrays: dict[str, NDArray[Any]]) -> Iterator[list[tuple[str, int, bytes]]]:
    """Yield the chunks of all arrays as rows (name, part, payload), about 64 MiB at a time."""
    rows: list[tuple[str, int, bytes]] = []
    size = 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        starts = range(0, max(1, len(flat)), CHUNK_BYTES)  # an empty array has one chunk
        for part, start in enumerate(starts):
            payload = flat[start : start + CHUNK_BYTES].tobytes()
            rows.append((name, part, payload))
            size += len(payload)
            if size >= WRITE_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def check_metadata(stage: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a model's part of the metadata; raise ModelFormatError if damaged or too new."""
    try:
        metadata: dict[str, Any] = stage["spark_fm"]
        version = int(metadata["format_version"])
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise ModelFormatError(f"{path}/metadata lacks the model's facts; it is damaged.") from err
    if version > FORMAT_VERSION:
        raise ModelFormatError(
            f"{path} has model format {version}, written by spark_fm {metadata.get('version')}; "
            f"this is spark_fm {__version__}, which reads up to format {FORMAT_VERSION}. "
            "Upgrade spark_fm."
        )
    if metadata.get("sha256") != _metadata_digest(metadata):
        raise ModelFormatError(
            f"{path}/metadata is damaged: it was changed since it was written. Restore the "
            "folder or train again."
        )
    return metadata


def n_bytes_of(forms: dict[str, Any]) -> int:
    """Return the bytes of all arrays, from ``arrays`` of the metadata."""
    return sum(_size(form) for form in forms.values())


def join_arrays(
    chunks: Iterable[tuple[Any, ...]], forms: dict[str, Any], path: str
) -> dict[str, NDArray[Any]]:
    """Return arrays from their chunks (name, part, payload), in any order.

    Raises ModelFormatError when bytes are missing, too many, or not those that were written.
    """
    arrays = {name: np.zeros(form["shape"], form["dtype"]) for name, form in forms.items()}
    flats = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
    seen: dict[str, int] = dict.fromkeys(forms, 0)
    for name, part, payload in chunks:
        if name not in flats:
            raise ModelFormatError(f"{path}/data holds an unknown array {name!r}.")
        start = part * CHUNK_BYTES
        flats[name][start : start + len(payload)] = np.frombuffer(payload, np.uint8)
        seen[name] += len(payload)
    for name, form in forms.items():
        size = _size(form)
        if seen[name] != size or _digest(arrays[name]) != form["sha256"]:
            raise ModelFormatError(
                f"{path}/data is damaged: {name} has {seen[name]} of {size} bytes, or bytes "
                "that were changed. Restore the folder or train again."
            )
    return arrays


def weights_of(metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> FMWeights:
    """Return the parameters of a model from its metadata and arrays."""
    return FMWeights(
        bias=float.fromhex(metadata["bias"]),
        table=arrays["table"],
        feature_dim=metadata["feature_dim"],
        features=arrays.get("features"),
    )


def state_of(arrays: dict[str, NDArray[Any]]) -> TrainingState | None:
    """Return the training state among a model's arrays, None without one."""
    found = {name[len(STATE) :]: a for name, a in arrays.items() if name.startswith(STATE)}
    if not found:
        return None
    return TrainingState(json.loads(found.pop("").tobytes()), found)


def posterior_of(weights: FMWeights, arrays: dict[str, NDArray[Any]]) -> Posterior | None:
    """Return the draws among the arrays of a model with these weights, None without any."""
    if f"{POSTERIOR}tables" not in arrays:
        return None
    pairs = zip(arrays[f"{POSTERIOR}tables"], arrays[f"{POSTERIOR}biases"], strict=True)
    members = tuple(replace(weights, table=table, bias=float(bias)) for table, bias in pairs)
    return Posterior(members, arrays[f"{POSTERIOR}noise"])


def reason(err: Exception) -> str:
    """Return what went wrong in one line."""
    if isinstance(err, KeyError):
        return f"{err} is missing"
    lines = (str(err) or type(err).__name__).strip().splitlines()
    causes = [line.strip() for line in lines if line.strip().startswith("Caused by: ")]
    return (causes or lines)[0]


def _table(rows: list[tuple[str, int, bytes]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, CHUNKS.types, strict=True)]
    return pa.table(arrays, schema=CHUNKS)


def _chunks(path: str) -> Iterator[tuple[Any, ...]]:
    for file in files_in(path):
        with file.open() as stream:
            for batch in pq.ParquetFile(stream).iter_batches(READ_ROWS, columns=CHUNKS.names):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _lines(file: DataFile) -> list[str]:
    with file.open() as stream:
        return stream.read().decode().splitlines()


def _size(form: dict[str, Any]) -> int:
    return int(math.prod(form["shape"]) * np.dtype(form["dtype"]).itemsize)


def _metadata_digest(metadata: dict[str, Any]) -> str:
    """Return the digest of a model's metadata without that digest."""
    digested = {name: value for name, value in metadata.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(digested, sort_keys=True).encode()).hexdigest()


def _digest(array: NDArray[Any]) -> str:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()


def imported_model(
    weights: FMWeights, predictor_type: str, *, threshold: float, origin: dict[str, Any]
) -> SavedModel:
    """Return a model that came from another format.

    ``threshold`` is the score from which the label is 1, ``origin`` what is kept about the
    format: ``format``, ``hyperparameters``, ...
    """
    if predictor_type not in LOSS_OF_PREDICTOR:
        raise InvalidParamError(
            f"predictorType={predictor_type!r} is not allowed: expected "
            f"{' or '.join(LOSS_OF_PREDICTOR)}."
        )
    if not 0 <= threshold <= 1:
        raise InvalidParamError(f"threshold={threshold!r} is not allowed: expected 0 to 1.")
    params = {
        "predictorType": predictor_type,
        "threshold": threshold,
        "numFactors": weights.k,
        "featureDim": weights.feature_dim,
    }
    metadata = {"version": __version__, "summary": None, "origin": origin}
    loss = LOSS_OF_PREDICTOR[predictor_type]
    return SavedModel(weights, loss, {**SCORING_DEFAULTS, **params}, metadata, None)


def checked_weights(
    bias: float,
    table: NDArray[np.float32],
    feature_dim: int,
    *,
    features: NDArray[np.int32] | None = None,
    source: str,
) -> FMWeights:
    """Return parameters that came from a file; raise ModelFormatError if no model can have them.

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

    Raises InvalidParamError when a table of the features seen would grow beyond ``max_bytes``.
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
    """Write a model folder that Spark and ``read_model`` load; local, or of any store.

    With ``overwrite`` an existing model or an empty folder is replaced; anything else raises
    InvalidParamError. A local folder appears under its name when it is complete.
    """
    check_replaceable(path, overwrite=overwrite)
    arrays = model_arrays(model.weights, model.state)
    metadata = model_metadata(
        model.weights, arrays, model.metadata.get("summary"), origin=model.metadata.get("origin")
    )
    set_params = {n: v for n, v in model.params.items() if SCORING_DEFAULTS.get(n) != v}
    stage = {
        "class": MODEL_CLASS,
        "timestamp": round(time.time() * 1000),
        "sparkVersion": METADATA_VERSION,
        "uid": f"FactorizationMachineModel_{uuid.uuid4().hex[-12:]}",
        "paramMap": set_params,
        "defaultParamMap": SCORING_DEFAULTS,
        "spark_fm": metadata,
    }
    text = json.dumps(stage, separators=(",", ":"))
    store, inner = store_of(path)
    if not isinstance(store, pafs.LocalFileSystem):
        _replace_remote(store, inner.rstrip("/"), text, arrays)
        return
    inner = os.path.realpath(inner)  # a link stays one, and what it leads to is replaced
    mark = uuid.uuid4().hex[:12]
    temporary, old = f"{inner}.{mark}.tmp", f"{inner}.{mark}.old"
    try:
        _write_files(store, temporary, text, arrays)
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


def _replace_remote(store: Any, inner: str, metadata: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a model beside the old one, then swap their files; a failure moves them back.

    Object stores have no folders to rename, and a move copies: what is new is written in place.
    """
    if store.get_file_info(inner).type == pafs.FileType.NotFound:
        try:
            _write_files(store, inner, metadata, arrays)
        except BaseException:
            _remove(store, inner)
            raise
        return
    mark = uuid.uuid4().hex[:12]
    new, old = f"{inner}.{mark}.tmp", f"{inner}.{mark}.old"
    moves: list[tuple[str, str]] = []
    try:
        _write_files(store, new, metadata, arrays)
        try:
            for source, target in [*_moves(store, inner, old), *_moves(store, new, inner)]:
                make_folder(store, posixpath.dirname(target))
                moves.append((source, target))
                store.move(source, target)
        except BaseException as err:
            for source, target in reversed(moves):
                with suppress(Exception):  # the last one was not moved
                    store.move(target, source)
            if _moves(store, old, inner):
                raise SparkFMError(
                    f"{inner} could not be replaced ({err}), and what was there could not be put "
                    f"back: its files are in {old}. Move them to {inner}."
                ) from err
            raise
    finally:
        _remove(store, new)
    _remove(store, old)


def _moves(store: Any, source: str, target: str) -> list[tuple[str, str]]:
    """Return each file of a folder, and its path in another one."""
    inside = pafs.FileSelector(source, recursive=True, allow_not_found=True)
    paths = [file.path for file in store.get_file_info(inside) if file.is_file]
    return [(path, target + path[len(source) :]) for path in paths]


def _remove(store: Any, folder: str) -> None:
    with suppress(OSError):  # what is replaced is safe by now, and an error may be under way
        if store.get_file_info(folder).type == pafs.FileType.Directory:
            store.delete_dir(folder)


def check_replaceable(path: str, *, overwrite: bool) -> None:
    """Raise InvalidParamError when no model folder may be written to ``path``."""
    store, inner = store_of(path)
    info = store.get_file_info(inner.rstrip("/"))
    if info.type == pafs.FileType.NotFound:
        return
    if not overwrite:
        raise InvalidParamError(f"{path} exists; give another path, or --overwrite.")
    if info.type == pafs.FileType.Directory:
        names = {entry.base_name for entry in store.get_file_info(pafs.FileSelector(info.path))}
        if names <= {"data", "metadata"}:
            return
    raise InvalidParamError(f"{path} is no model folder, and is not replaced; give another path.")
