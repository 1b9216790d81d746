"""A model as files: what they hold, how they are checked, and both ways without Spark.

A model folder holds ``data`` (Parquet: the pieces of the parameter table and, where
there are such, the table of ids and the state of the training) and ``metadata`` (one line
of JSON, as Spark ML writes it). The metadata names the digest of every array, and is
written last, so an interrupted save leaves nothing that loads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import ModelFormatError, SparkFMError
from spark_fm.formats.files import DataFile, files_in, store_of
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.spec import Loss
from spark_fm.learner.training import Snapshot
from spark_fm.learner.weights import FMWeights

FORMAT_VERSION = 1
MODEL_CLASS = "spark_fm.ml.model.FactorizationMachineModel"
LOSSES: dict[str, Loss] = {"binary_classifier": "logistic", "regressor": "squared"}
STATE = "training/"  # begins the names of the arrays of a training state
PIECE_BYTES = 4 * 2**20  # of an array in one row of the data
WRITE_BYTES = 64 * 2**20
READ_ROWS = 16
PIECES = pa.schema(
    [pa.field("name", pa.string()), pa.field("part", pa.int32()), pa.field("payload", pa.binary())]
)


@dataclass(frozen=True, slots=True, eq=False)
class SavedModel:
    """A model as it was saved, without Spark ML around it.

    Parameters
    ----------
    weights : FMWeights
    loss : {"logistic", "squared"}
        Of a classifier, or of a regressor.
    params : dict
        Value of every Param that is set or has a default, by its name in camelCase.
    facts : dict
        What else the metadata says: ``version`` of the writer, ``summary``, ``origin``.
    state : Snapshot or None
        Where the training stands, if it was kept.
    """

    weights: FMWeights
    loss: Loss
    params: dict[str, Any]
    facts: dict[str, Any]
    state: Snapshot | None

    def predict(self, batch: CsrBatch) -> NDArray[np.float32]:
        """Return probabilities of label 1, or values; float32 of shape (n_rows,).

        Raises
        ------
        InvalidDataError
            For an index outside the model's features.
        """
        return self.weights.predict(batch, self.loss)

    def with_threshold(self, threshold: float | None) -> SavedModel:
        """Return the model with another threshold; with its own for None."""
        if threshold is None:
            return self
        return replace(self, params={**self.params, "threshold": threshold})


def read_model(path: str) -> SavedModel:
    """Read a model folder, as ``model.save(path)`` leaves it, and check that it is whole.

    Parameters
    ----------
    path : str
        Local, or a URI that pyarrow or fsspec knows.

    Raises
    ------
    ModelFormatError
        For a folder that is not a model, is damaged or comes from a newer version.

    Notes
    -----
    No Spark and no Java: for servers and notebooks. The arrays, the bias and the summary
    have digests; the Params do not, only their names and ranges are checked.
    """
    base = path.rstrip("/")
    try:
        lines = [line for file in files_in(f"{base}/metadata") for line in _lines(file)]
    except (SparkFMError, OSError, UnicodeDecodeError) as err:
        raise unreadable_metadata(path, MODEL_CLASS, str(err)) from err
    metadata = parse_metadata(lines, path, MODEL_CLASS)
    facts = checked_facts(metadata, path)
    try:
        arrays = join_arrays(_pieces(f"{base}/data"), facts["arrays"], path)
        weights, state = weights_of(facts, arrays), state_of(arrays)
    except ModelFormatError:
        raise
    except (SparkFMError, OSError, KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(f"{path} is a damaged model: {reason(err)}") from err
    try:
        params = {**metadata["defaultParamMap"], **metadata["paramMap"]}
        loss = LOSSES[params["predictorType"]]
        if not 0 <= params["threshold"] <= 1:
            raise ValueError(f"threshold={params['threshold']!r} is outside 0 to 1")
    except (KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(
            f"{path}/metadata has Params that spark_fm {__version__} cannot set: {reason(err)}. "
            "It is damaged, or comes from another spark_fm."
        ) from err
    return SavedModel(weights, loss, params, facts, state)


def write_model(path: str, metadata: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a model folder without a Spark job, for ``read_model`` and for Spark alike.

    Parameters
    ----------
    path : str
        Folder to make, of any store that pyarrow or fsspec knows.
    metadata : str
        The line of JSON, with the ``model_facts`` of these arrays.
    arrays : dict of str to ndarray
        As ``model_arrays`` gives them.
    """
    store, inner = store_of(path.rstrip("/"))
    for folder in ("data", "metadata"):
        store.create_dir(f"{inner}/{folder}", recursive=True)
    with (
        store.open_output_stream(f"{inner}/data/part-00000.parquet") as sink,
        pq.ParquetWriter(sink, PIECES) as writer,
    ):
        for rows in piece_rows(arrays):
            writer.write_table(_table(rows))
    with store.open_output_stream(f"{inner}/metadata/part-00000") as sink:
        sink.write(f"{metadata}\n".encode())


def model_arrays(weights: FMWeights, state: Snapshot | None) -> dict[str, NDArray[Any]]:
    """Return all arrays of a model by name; a state's facts are the bytes of their JSON."""
    arrays: dict[str, NDArray[Any]] = {"table": weights.table}
    if weights.features is not None:
        arrays["features"] = weights.features
    if state is not None:
        text = np.frombuffer(json.dumps(state.facts).encode(), np.uint8)
        arrays |= {f"{STATE}{name}": array for name, array in ({"": text} | state.arrays).items()}
    return arrays


def model_facts(
    weights: FMWeights,
    arrays: dict[str, NDArray[Any]],
    summary: dict[str, Any] | None,
    *,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what the metadata says of a model, with digests of its arrays and of itself.

    ``origin`` says where a model comes from that was not trained here.
    """
    facts: dict[str, Any] = {
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
        facts["origin"] = origin
    facts["sha256"] = _facts_digest(facts)
    return facts


def piece_rows(arrays: dict[str, NDArray[Any]]) -> Iterator[list[tuple[str, int, bytes]]]:
    """Yield the pieces of all arrays as rows (name, part, payload), about 64 MiB at a time."""
    rows: list[tuple[str, int, bytes]] = []
    size = 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        starts = range(0, max(1, len(flat)), PIECE_BYTES)  # an empty array has one piece
        for part, start in enumerate(starts):
            payload = flat[start : start + PIECE_BYTES].tobytes()
            rows.append((name, part, payload))
            size += len(payload)
            if size >= WRITE_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def parse_metadata(lines: list[str], path: str, wanted: str) -> dict[str, Any]:
    """Return a stage's metadata; raise ModelFormatError for anything but class ``wanted``."""
    try:
        metadata: dict[str, Any] = json.loads(lines[0])
        found = metadata["class"]
    except (IndexError, KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(
            f"{path}/metadata is not the metadata of a Spark ML stage. Restore it or save the "
            "stage again."
        ) from err
    if found != wanted:
        raise ModelFormatError(f"{path} holds a {found}, not a {wanted}. Load it as what it is.")
    return metadata


def unreadable_metadata(path: str, wanted: str, why: str) -> ModelFormatError:
    """Return the error for a folder whose metadata cannot be read."""
    return ModelFormatError(
        f"{path} holds no {wanted.rsplit('.', 1)[-1]}: its metadata cannot be read ({why}). It may "
        "be another folder, or a save that was interrupted."
    )


def checked_facts(metadata: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a model's facts; raise ModelFormatError when damaged or of a newer version."""
    try:
        facts: dict[str, Any] = metadata["spark_fm"]
        version = int(facts["format_version"])
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise ModelFormatError(f"{path}/metadata lacks the model's facts; it is damaged.") from err
    if version > FORMAT_VERSION:
        raise ModelFormatError(
            f"{path} has model format {version}, written by spark_fm {facts.get('version')}; "
            f"this is spark_fm {__version__}, which reads up to format {FORMAT_VERSION}. "
            "Upgrade spark_fm."
        )
    if facts.get("sha256") != _facts_digest(facts):
        raise ModelFormatError(
            f"{path}/metadata is damaged: it was changed since it was written. Restore the "
            "folder or train again."
        )
    return facts


def n_bytes_of(forms: dict[str, Any]) -> int:
    """Return the bytes of all arrays, from the facts' ``arrays``."""
    return sum(_size(form) for form in forms.values())


def join_arrays(
    pieces: Iterable[tuple[Any, ...]], forms: dict[str, Any], path: str
) -> dict[str, NDArray[Any]]:
    """Return arrays from their pieces (name, part, payload), in any order.

    Raises
    ------
    ModelFormatError
        When bytes are missing, too many, or not those that were written.
    """
    arrays = {name: np.zeros(form["shape"], form["dtype"]) for name, form in forms.items()}
    flats = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
    seen: dict[str, int] = dict.fromkeys(forms, 0)
    for name, part, payload in pieces:
        if name not in flats:
            raise ModelFormatError(f"{path}/data holds an unknown array {name!r}.")
        start = part * PIECE_BYTES
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


def weights_of(facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> FMWeights:
    """Return the parameters of a model from its facts and arrays."""
    return FMWeights(
        bias=float.fromhex(facts["bias"]),
        table=arrays["table"],
        feature_dim=facts["feature_dim"],
        features=arrays.get("features"),
    )


def state_of(arrays: dict[str, NDArray[Any]]) -> Snapshot | None:
    """Return the state of the training among a model's arrays, if it is there."""
    found = {name[len(STATE) :]: a for name, a in arrays.items() if name.startswith(STATE)}
    if not found:
        return None
    return Snapshot(json.loads(found.pop("").tobytes()), found)


def reason(err: Exception) -> str:
    """Return what went wrong in one line."""
    if isinstance(err, KeyError):
        return f"{err} is missing"
    lines = (str(err) or type(err).__name__).strip().splitlines()
    causes = [line.strip() for line in lines if line.strip().startswith("Caused by: ")]
    return (causes or lines)[0]


def _table(rows: list[tuple[str, int, bytes]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, PIECES.types, strict=True)]
    return pa.table(arrays, schema=PIECES)


def _pieces(path: str) -> Iterator[tuple[Any, ...]]:
    for file in files_in(path):
        with file.open() as stream:
            for batch in pq.ParquetFile(stream).iter_batches(READ_ROWS, columns=PIECES.names):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _lines(file: DataFile) -> list[str]:
    with file.open() as stream:
        return stream.read().decode().splitlines()


def _size(form: dict[str, Any]) -> int:
    return int(math.prod(form["shape"]) * np.dtype(form["dtype"]).itemsize)


def _facts_digest(facts: dict[str, Any]) -> str:
    """Return the digest of a model's facts, its own entry left out."""
    rest = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digest(array: NDArray[Any]) -> str:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()
