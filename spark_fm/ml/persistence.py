"""Save and load estimators and models as JSON metadata and Parquet; driver only.

A model folder holds ``data`` (Parquet: the pieces of the parameter table and, where
there are such, the table of ids and the state of the training) and ``metadata`` (one line
of JSON). The metadata is written last and names the checksum of the data, so an
interrupted save leaves nothing that loads.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession

from spark_fm._version import __version__
from spark_fm.engine.gathering import gather
from spark_fm.engine.pieces import PIECE_BYTES, PIECE_SCHEMA
from spark_fm.engine.session import is_connect
from spark_fm.errors import ModelFormatError
from spark_fm.learner.snapshot import Snapshot
from spark_fm.learner.weights import FMWeights

FORMAT_VERSION = 1
STATE = "training/"  # begins the names of the arrays of a training state
WRITE_BYTES = 64 * 2**20
# Classic has no PySpark exception for a file that a task could not read.
READ_ERRORS = (PySparkException, Py4JJavaError)


class FMStageWriter(MLWriter):
    """Writes a stage's Params; overwrites on Spark Connect too."""

    def __init__(self, instance: Any) -> None:
        super().__init__()
        self.instance = instance

    def _handleOverwrite(self, path: str) -> None:
        if is_connect(self.sparkSession):
            # MLWriter's own way needs the JVM; Connect has a helper for JVM stages.
            from pyspark.ml.connect.readwrite import RemoteMLWriter

            RemoteMLWriter.handleOverwrite(path, True)
        else:
            super()._handleOverwrite(path)

    def saveImpl(self, path: str) -> None:
        """Write the metadata."""
        DefaultParamsWriter.saveMetadata(self.instance, path, self.sparkSession)


class FMStageReader(MLReader[Any]):
    """Reads a stage's Params."""

    def __init__(self, cls: type) -> None:
        super().__init__()
        self._cls = cls

    @property
    def sparkSession(self) -> SparkSession:
        """Return the reader's session; start one where there is none."""
        try:
            return super().sparkSession
        except PySparkException:
            return SparkSession.builder.getOrCreate()

    def load(self, path: str) -> Any:
        """Return the stage saved at ``path``."""
        return self._with_params(self._cls(), self._metadata(path), path)

    def _with_params(self, stage: Any, metadata: dict[str, Any], path: str) -> Any:
        try:
            stage._resetUid(metadata["uid"])
            DefaultParamsReader.getAndSetParams(stage, metadata)
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            raise ModelFormatError(
                f"{path}/metadata has Params that spark_fm {__version__} cannot set: "
                f"{_reason(err)}. It is damaged, or comes from another spark_fm."
            ) from err
        return stage

    def _metadata(self, path: str) -> dict[str, Any]:
        wanted = f"{self._cls.__module__}.{self._cls.__name__}"
        try:
            rows = self.sparkSession.read.text(path.rstrip("/") + "/metadata").collect()
        except READ_ERRORS as err:
            raise ModelFormatError(
                f"{path} holds no {self._cls.__name__}: its metadata cannot be read "
                f"({_reason(err)}). It may be another folder, or a save that was interrupted."
            ) from err
        try:
            metadata: dict[str, Any] = json.loads(rows[0][0])
            found = metadata["class"]
        except (IndexError, KeyError, TypeError, ValueError) as err:
            raise ModelFormatError(
                f"{path}/metadata is not the metadata of a Spark ML stage. Restore it or save the "
                "stage again."
            ) from err
        if found != wanted:
            raise ModelFormatError(
                f"{path} holds a {found}, not a {wanted}. Load it as what it is."
            )
        return metadata


class FMModelWriter(FMStageWriter):
    """Writes a model: data first, metadata last."""

    def saveImpl(self, path: str) -> None:
        """Write data and metadata."""
        model, session = self.instance, self.sparkSession
        weights: FMWeights = model.weights
        arrays: dict[str, NDArray[Any]] = {"table": weights.table}
        if weights.features is not None:
            arrays["features"] = weights.features
        arrays |= _state_arrays(model.trainingState)
        data_path = path.rstrip("/") + "/data"
        mode = "error"  # a folder of somebody else's is never added to
        for table in _tables(arrays):
            frame = session.createDataFrame(table, schema=_PIECES_DDL).coalesce(1)
            frame.write.mode(mode).parquet(data_path)
            mode = "append"
        summary = model.summary
        facts = {
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
            "summary": None if summary is None else summary.to_dict(),
        }
        facts["sha256"] = _facts_digest(facts)
        DefaultParamsWriter.saveMetadata(model, path, session, extraMetadata={"spark_fm": facts})


_PIECES_DDL = "name string, part int, payload binary"


class FMModelReader(FMStageReader):
    """Reads a model and checks that it is whole."""

    def load(self, path: str) -> Any:
        """Return the model saved at ``path``.

        Raises
        ------
        ModelFormatError
            For a folder that is not a model, is damaged or comes from a newer version.
        """
        from spark_fm.ml.summary import FMTrainingSummary

        metadata = self._metadata(path)
        try:
            facts = metadata["spark_fm"]
            version = int(facts["format_version"])
        except (KeyError, TypeError, ValueError) as err:
            raise ModelFormatError(
                f"{path}/metadata lacks the model's facts; it is damaged."
            ) from err
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
        try:
            arrays = _read_arrays(self.sparkSession, path, facts["arrays"])
            weights = FMWeights(
                bias=float.fromhex(facts["bias"]),
                table=arrays["table"],
                feature_dim=facts["feature_dim"],
                features=arrays.get("features"),
            )
            kept = facts["summary"]
            summary = None if kept is None else FMTrainingSummary(kept["rows"], kept["facts"])
            state = _state_of(arrays)
        except ModelFormatError:
            raise
        except (KeyError, TypeError, ValueError, *READ_ERRORS) as err:
            raise ModelFormatError(f"{path} is a damaged model: {_reason(err)}") from err
        return self._with_params(self._cls(weights, summary, state), metadata, path)


def _state_arrays(state: Snapshot | None) -> dict[str, NDArray[Any]]:
    """Return a training state as arrays; its facts as the bytes of their JSON."""
    if state is None:
        return {}
    facts = np.frombuffer(json.dumps(state.facts).encode(), np.uint8)
    return {f"{STATE}{name}": array for name, array in ({"": facts} | state.arrays).items()}


def _state_of(arrays: dict[str, NDArray[Any]]) -> Snapshot | None:
    found = {name[len(STATE) :]: a for name, a in arrays.items() if name.startswith(STATE)}
    if not found:
        return None
    return Snapshot(json.loads(found.pop("").tobytes()), found)


def _tables(arrays: dict[str, NDArray[Any]]) -> list[pa.Table] | Any:
    """Yield Arrow tables of at most 64 MiB with the pieces of all arrays."""
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
                yield _table(rows)
                rows, size = [], 0
    if rows:
        yield _table(rows)


def _table(rows: list[tuple[str, int, bytes]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    fields = [PIECE_SCHEMA.field(name) for name in ("name", "part", "payload")]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)],
        schema=pa.schema(fields),
    )


def _read_arrays(
    session: SparkSession, path: str, forms: dict[str, Any]
) -> dict[str, NDArray[Any]]:
    frame = session.read.schema(_PIECES_DDL).parquet(path.rstrip("/") + "/data")
    sizes = {
        name: int(np.prod(form["shape"])) * np.dtype(form["dtype"]).itemsize
        for name, form in forms.items()
    }
    arrays = {name: np.zeros(form["shape"], form["dtype"]) for name, form in forms.items()}
    flats = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
    seen: dict[str, int] = dict.fromkeys(forms, 0)
    rows = gather(
        frame, session, columns=["name", "part", "payload"], n_bytes=sum(sizes.values()),
        spread=["name", "part"],
    )  # fmt: skip
    for name, part, payload in rows:
        if name not in flats:
            raise ModelFormatError(f"{path}/data holds an unknown array {name!r}.")
        start = part * PIECE_BYTES
        flats[name][start : start + len(payload)] = np.frombuffer(payload, np.uint8)
        seen[name] += len(payload)
    for name, form in forms.items():
        if seen[name] != sizes[name] or _digest(arrays[name]) != form["sha256"]:
            raise ModelFormatError(
                f"{path}/data is damaged: {name} has {seen[name]} of {sizes[name]} bytes, or bytes "
                "that were changed. Restore the folder or train again."
            )
    return arrays


def _facts_digest(facts: dict[str, Any]) -> str:
    """Return the digest of a model's facts, its own entry left out."""
    rest = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digest(array: NDArray[Any]) -> str:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()


def _reason(err: Exception) -> str:
    """Return what went wrong in one line."""
    if isinstance(err, KeyError):
        return f"{err} is missing"
    lines = (str(err) or type(err).__name__).strip().splitlines()
    causes = [line.strip() for line in lines if line.strip().startswith("Caused by: ")]
    return (causes or lines)[0]
