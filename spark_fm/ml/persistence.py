"""Save and load estimators and models through Spark ML's writers and readers; driver only.

``formats/models/native.py`` defines the contents of a model's files and checks them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]  # has no types
from pyspark.errors import PySparkException
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.files import local_place
from spark_fm.formats.models.native import (
    check_metadata,
    chunk_rows,
    join_arrays,
    model_arrays,
    model_metadata,
    n_bytes_of,
    posterior_of,
    reason,
    state_of,
    weights_of,
    write_model,
)
from spark_fm.formats.models.stages import parse_metadata, unreadable_metadata
from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.spark.collect import collect_rows
from spark_fm.spark.files import check_store_known, literal, replace_folder
from spark_fm.spark.session import SparkCluster, is_connect, is_local_master

# Classic has no PySpark exception for a file that a task could not read.
READ_ERRORS = (PySparkException, Py4JJavaError)


class FMStageWriter(MLWriter):
    """Writes a stage's Params; overwrites on Spark Connect too."""

    def __init__(self, instance: Any) -> None:
        super().__init__()
        self.instance = instance

    def save(self, path: str) -> None:
        """Save to ``path``; InvalidParamError if it exists and ``overwrite()`` was not called."""
        exists = InvalidParamError(
            f"path={path!r} already exists. Save to another place, or replace what is there with "
            "write().overwrite().save(path)."
        )
        # Spark checks the folders inside only, and would add them to somebody else's files.
        if not self.shouldOverwrite and self._exists(path):
            raise exists
        try:
            if self.shouldOverwrite:
                replace_folder(self.sparkSession, path, self.saveImpl)
            else:
                self.saveImpl(path)
        except READ_ERRORS as err:
            check_store_known(path, err)
            if "PATH_ALREADY_EXISTS" in str(err) or "FileAlreadyExistsException" in str(err):
                raise exists from err
            raise

    def _exists(self, path: str) -> bool:
        """Return whether a local path exists, if Spark's paths are local to this machine."""
        session = self.sparkSession
        if is_connect(session) or not is_local_master(session):
            return False
        place = local_place(path)
        return place is not None and os.path.lexists(place)

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
        """Return the reader's session; start one if there is none."""
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
                f"{reason(err)}. It is damaged, or comes from another spark_fm."
            ) from err
        return stage

    def _metadata(self, path: str) -> dict[str, Any]:
        class_path = f"{self._cls.__module__}.{self._cls.__name__}"
        try:
            file = literal(path.rstrip("/") + "/metadata")
            rows = self.sparkSession.read.text(file).collect()
        except READ_ERRORS as err:
            check_store_known(path, err)
            raise unreadable_metadata(path, class_path, reason(err)) from err
        return parse_metadata([row[0] for row in rows], path, class_path)


class FMModelWriter(FMStageWriter):
    """Writes a model: data first, metadata last."""

    def saveImpl(self, path: str) -> None:
        """Write data and metadata."""
        model, session = self.instance, self.sparkSession
        arrays = model_arrays(model.weights, model.trainingState, model._posterior)
        data_path = path.rstrip("/") + "/data"
        mode = "error"  # a folder of somebody else's is never added to
        for rows in chunk_rows(arrays):
            # Not as an Arrow table: PySpark cuts one by arrow.maxRecordsPerBatch, and fails
            # where that is 0 or -1, Spark's "no limit".
            frame = session.createDataFrame(rows, schema=_CHUNKS_DDL)
            frame = frame.coalesce(1)
            frame.write.mode(mode).parquet(data_path)
            mode = "append"
        metadata = {"spark_fm": _metadata_of(model, arrays)}
        DefaultParamsWriter.saveMetadata(model, path, session, extraMetadata=metadata)


_CHUNKS_DDL = "name string, part int, payload binary"


def _metadata_of(model: Any, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return our part of the metadata of a model with these arrays."""
    summary = None if model.summary is None else model.summary.to_dict()
    return model_metadata(model.weights, arrays, summary, origin=model.origin)


def write_local(model: Any, path: str) -> None:
    """Write a model's folder from this process alone, to a disk that executors do not share."""
    arrays = model_arrays(model.weights, model.trainingState, model._posterior)
    session = SparkSession.active()
    metadata = DefaultParamsWriter._get_metadata_to_save(
        model, session, {"spark_fm": _metadata_of(model, arrays)}
    )
    write_model(path, metadata, arrays)


class FMModelReader(FMStageReader):
    """Reads a model and checks that it is complete."""

    def load(self, path: str) -> Any:
        """Return the model saved at ``path``.

        Raises
        ------
        ModelFormatError
            For a folder that is not a model, is damaged or comes from a newer version.
        """
        metadata = self._metadata(path)
        ours = check_metadata(metadata, path)
        try:
            arrays = join_arrays(self._chunks(path, ours["arrays"]), ours["arrays"], path)
            weights = weights_of(ours, arrays)
            saved = ours["summary"]
            summary = None if saved is None else FMTrainingSummary(saved["rows"], saved["facts"])
            state, posterior = state_of(arrays), posterior_of(weights, arrays)
        except ModelFormatError:
            raise
        except (KeyError, TypeError, ValueError, *READ_ERRORS) as err:
            raise ModelFormatError(f"{path} is a damaged model: {reason(err)}") from err
        model = self._cls(weights, summary, state, ours.get("origin"), posterior)
        return self._with_params(model, metadata, path)

    def _chunks(self, path: str, forms: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        session = self.sparkSession
        folder = literal(path.rstrip("/") + "/data")
        frame = session.read.schema(_CHUNKS_DDL).parquet(folder)
        return collect_rows(
            frame, SparkCluster.of(session), columns=["name", "part", "payload"],
            n_bytes=n_bytes_of(forms), spread=["name", "part"],
        )  # fmt: skip
