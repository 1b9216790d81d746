"""Write checkpoints of a training, and read the last one after a crash; driver only.

A checkpoint is one Arrow IPC file of checked chunks. It appears under its name only when
it is complete, so a crash leaves the one before. It is an insurance: a training that cannot write
or remove it goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs

from spark_fm._version import __version__
from spark_fm.errors import CheckpointError
from spark_fm.formats.files import (
    atomic_write,
    make_folder,
    path_in,
    store_of,
    temporary_prefix,
)
from spark_fm.learner.training import TrainingState
from spark_fm.spark.collect import CHUNK_SCHEMA, from_chunks, to_chunks
from spark_fm.training.config import TrainConfig

log = logging.getLogger(__name__)

SUFFIX = ".spark-fm-checkpoint"
FORMAT = 2  # 1: labels were not centred, and features not standardized
# Names of a configuration's fields that are not their Param's name in snake case.
_PARAMS = {
    "k": "numFactors",
    "loss": "predictorType",
    "averagings": "averagingsPerEpoch",
    "metric": "validationMetric",
}


class Checkpoint:
    """The checkpoint of one training in a folder of any store that pyarrow or fsspec knows.

    A later training must have the same ``config``; ``name`` is the training's, where several
    share the folder.
    """

    def __init__(self, config: TrainConfig, name: str = "training") -> None:
        self._path = path_in(config.checkpoint_dir, f"{name}{SUFFIX}")
        self._store, self._inner = store_of(self._path)
        self._inner_folder, self._name = self._inner.rsplit("/", 1)
        self._request = _plain(config)
        self._folder = config.checkpoint_dir

    def read(self, fingerprint: str) -> TrainingState | None:
        """Return the state that was written last, or None; ``fingerprint`` is that of the data.

        Raises CheckpointError for a checkpoint that is damaged, or of another version, other
        Params or other data.
        """
        try:
            if self._store.get_file_info(self._inner).type == pafs.FileType.NotFound:
                return None
            opened = self._store.open_input_file(self._inner)
        except Exception as err:
            raise CheckpointError(
                f"{self._path} cannot be read ({err}). Let the driver reach checkpointDir, or "
                "leave it empty."
            ) from err
        advice = f"remove {self._path} to start over."
        try:
            with opened as source:
                reader = pa.ipc.open_stream(source)
                rows = [
                    (first["name"], first["part"], first["payload"])
                    for batch in reader
                    for first in batch.slice(0, 1).to_pylist()
                ]
            metadata, arrays = from_chunks(rows)
            about = metadata.pop("about")
        except (pa.ArrowException, OSError, RuntimeError, ValueError, KeyError, TypeError) as err:
            raise CheckpointError(
                f"{self._path} is a damaged checkpoint ({err}); {advice}"
            ) from err
        differences = _differences(about, self._about(fingerprint))
        if differences:
            raise CheckpointError(
                f"{self._path} is the checkpoint of another training: {'; '.join(differences)}. "
                f"Use the same Params, data and version to resume it, or {advice} (A Pipeline "
                "or OneVsRest that trains several models has one file for all: docs/going-on.md.)"
            )
        training_state = TrainingState(metadata, arrays)
        log.info("resuming from %s after %d epoch(s)", self._path, metadata["run"]["epoch"])
        return training_state

    def check_writable(self) -> None:
        """Make the folder if need be; raise CheckpointError unless it can be written to."""
        trial = f"{self._inner_folder}/{temporary_prefix(self._name)}{uuid4().hex}"
        try:
            make_folder(self._store, self._inner_folder)
            self._store.open_output_stream(trial).close()
            self._store.delete_file(trial)
        except Exception as err:
            raise CheckpointError(
                f"checkpointDir={self._folder!r} cannot be written to ({err}). Give a folder that "
                "the driver may write to, or leave checkpointDir empty."
            ) from err

    def write(self, training_state: TrainingState) -> None:
        """Replace the checkpoint, or warn that the one before stays."""
        about = self._about(training_state.metadata["fingerprint"])
        metadata = {**training_state.metadata, "about": about}
        try:
            with (
                atomic_write(self._inner, store=self._store) as sink,
                pa.ipc.new_stream(sink, CHUNK_SCHEMA) as writer,
            ):
                for batch in to_chunks(0, metadata, training_state.arrays):
                    writer.write_batch(batch)
        except Exception as err:  # noqa: BLE001 - whatever the store raises
            log.warning(
                "checkpoint %s was not written after %d epoch(s) (%s: %s): training goes on, and "
                "writes it again checkpointInterval epochs later; a crash before goes back to "
                "the checkpoint before",
                self._path, metadata["run"]["epoch"], type(err).__name__, err,
            )  # fmt: skip

    def remove(self) -> None:
        """Delete the checkpoint, if any, and what killed writers of it have left, or warn."""
        there = pafs.FileSelector(self._inner_folder, allow_not_found=True)
        try:
            for file in self._store.get_file_info(there):
                name = file.base_name
                if name == self._name or name.startswith(temporary_prefix(self._name)):
                    self._store.delete_file(file.path)
        except Exception as err:  # noqa: BLE001 - whatever the store raises
            log.warning(
                "checkpoint %s of the finished training could not be removed (%s: %s): remove it, "
                "since a fit with other Params or data is refused while it is there",
                self._path, type(err).__name__, err,
            )  # fmt: skip

    def _about(self, fingerprint: str) -> dict[str, Any]:
        return {
            "version": __version__, "format": FORMAT, "data": fingerprint,
            "request": self._request,
        }  # fmt: skip


def checkpoint_name(config: TrainConfig, fingerprint: str) -> str:
    """Return a name that only this training has, for folders shared by several."""
    text = json.dumps([_plain(config), fingerprint], sort_keys=True)
    return f"training-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return what must agree, as JSON reads it back."""
    compared = replace(config, checkpoint_dir="", checkpoint_interval=1, n_tried=1)
    if config.solver != "gibbs":  # epochs and patience say it
        compared = replace(compared, sweeps=0, sweep_patience=0)
    plain: dict[str, Any] = json.loads(json.dumps(asdict(compared)))
    return plain


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    texts = []
    if there.get("format", 1) != here["format"]:
        return [f"another spark_fm wrote it ({there['version']}), in another form"]
    if there["version"] != here["version"]:
        texts.append(f"spark_fm {there['version']} wrote it, this is {here['version']}")
    if there["data"] != here["data"]:
        texts.append("the rows, or the partitions they come in, are others")
    before, now = _flat(there["request"]), _flat(here["request"])
    texts += [
        f"{name} is {before.get(name)!r} there and {now.get(name)!r} here"
        for name in sorted(before.keys() & now.keys())  # what a newer version knows has no value
        if before.get(name) != now.get(name)
    ]
    return texts


def _flat(config: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return the values by the names of their Params."""
    params: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            params |= _flat(value, "" if name == "spec" else name)
        elif group == "columns":
            params[f"{name}Col" if name != "validation" else "validationIndicatorCol"] = value
        else:
            snake = f"{group}_{_PARAMS.get(name, name)}" if group else _PARAMS.get(name, name)
            params[re.sub(r"_([a-z])", lambda match: match[1].upper(), snake)] = value
    return params
