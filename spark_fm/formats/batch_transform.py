"""SageMaker's batch transform: a ``.out`` file for each input file, joined on request."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from spark_fm.errors import InvalidDataError, InvalidParamError, SparkFMError
from spark_fm.formats.body_kinds import JSON, JSONLINES, RECORDIO_PROTOBUF
from spark_fm.formats.content_types import JsonType, Predictions, Shape, content_type_of
from spark_fm.formats.files import (
    GZIP_ERRORS,
    DataFile,
    atomic_write,
    list_files,
    reaches,
    store_of,
    unzipped,
)
from spark_fm.formats.json_records import JsonPath
from spark_fm.formats.models.native import SavedModel
from spark_fm.formats.requests import read_requests
from spark_fm.formats.responses import write_responses
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.predict import predicted_labels

log = logging.getLogger(__name__)

SUFFIX = ".out"


NONE, LINE, RECORD_IO = "None", "Line", "RecordIO"
# How the input of a type may be split; the first is the default.
_SPLIT_TYPES = {JSON: (NONE, LINE), JSONLINES: (LINE, NONE), RECORDIO_PROTOBUF: (RECORD_IO, NONE)}


@dataclass(frozen=True, slots=True)
class Transform:
    """What is done to every file, in SageMaker's words."""

    content_type: str  # of the input: one of CONTENT_TYPES
    accept: str  # of the output; with ``join`` it is the input's
    output: str  # folder, of any store that pyarrow or fsspec knows
    join: bool = False  # write each record together with its output
    split_type: str | None = None  # None: as is usual for the content type
    assemble_with: str | None = None
    input_filter: str = "$"  # JSONPath
    output_filter: str = "$"

    def __post_init__(self) -> None:
        if self.join and self.accept != self.content_type:
            raise InvalidParamError(
                f"A join writes instances as they came, {self.content_type}, and not as "
                f"{self.accept}. Leave the output's type out, or do not join."
            )
        allowed = _SPLIT_TYPES.get(self.content_type, (NONE,))
        if self.split_type is not None and self.split_type not in allowed:
            raise InvalidParamError(
                f"The split type {self.split_type} does not go with {self.content_type}, which is "
                f"split by {' or '.join(allowed)}. Leave it out, or correct the content type."
            )
        if self.assemble_with == LINE and self.accept == RECORDIO_PROTOBUF:
            raise InvalidParamError(
                "Records are not assembled by Line: a line end between them could not be read. "
                "Leave it out, or choose another type of output."
            )
        filters = (self.input_filter, self.output_filter) != ("$", "$")
        if filters and RECORDIO_PROTOBUF in (self.content_type, self.accept):
            raise InvalidParamError(
                "Input and output filters select from JSON, and not from records. Leave them out; "
                "a join keeps all that a record holds."
            )
        self.shape()

    def shape(self) -> Shape | None:
        """Return how JSON is split, filtered, joined and assembled; None where it needs nothing."""
        by_line = self.content_type == JSON and self.split_type == LINE
        paths = [
            JsonPath.parse(text, name)
            for text, name in ((self.input_filter, "input filter"),
                               (self.output_filter, "output filter"))
        ]  # fmt: skip
        if not (by_line or self.join or any(path.steps for path in paths)):
            return None
        usual = LINE if by_line or self.content_type == JSONLINES else NONE
        is_line = self.accept == JSONLINES or (
            self.accept == JSON and (self.assemble_with or usual) == LINE
        )
        return Shape(
            content_type_of(self.accept), self.join, by_line, b"\n" if is_line else b"", *paths
        )


@dataclass(frozen=True, slots=True)
class Work:
    """A file and where its output goes."""

    file: DataFile
    target: str  # path below the output folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: its rows, or the error that kept it from being scored."""

    path: str
    n_rows: int
    error: str | None = None


def default_accept(content_type: str, *, join: bool) -> str:
    """Return the default type of the output: lines for records, else the input's."""
    return content_type if join else content_type_of(content_type).batch_accept or content_type


def plan(paths: Sequence[str], job: Transform, *, overwrite: bool) -> list[Work]:
    """Return the files to score, each with the name of its output.

    Folders in a folder, or below the part of a glob before its first wildcard, keep their
    names. Raises InvalidDataError without a file, for two files with the same output, for an
    output that may not be replaced, and for outputs among the inputs.
    """
    store, folder = store_of(job.output)
    folder = folder.rstrip("/")
    found: dict[str, Work] = {}
    roots: dict[str, DataFile] = {}  # the first file of each
    for file in list_files(list(paths), recursive=True):
        roots.setdefault(file.root, file)
        work = Work(file, _name_below(file) + SUFFIX)
        if work.target in found:
            raise InvalidDataError(
                f"{found[work.target].file.path} and {file.path} would both become {work.target}. "
                "Score them into different folders."
            )
        found[work.target] = work
    outputs = [f"{folder}/{target}" for target in found]
    for root, file in roots.items():
        if _would_read(file, folder, outputs):
            raise InvalidDataError(
                f"The output {job.output} lies in the input {root}, where the next run would "
                "read it. Choose a folder outside."
            )
    if not found:
        raise InvalidDataError(f"There is no data in {', '.join(paths)}.")
    if not overwrite:
        infos = store.get_file_info([posixpath.join(folder, target) for target in found])
        existing = [info.path for info in infos if info.type.name != "NotFound"]
        if existing:
            raise InvalidDataError(
                f"{existing[0]} exists ({len(existing)} of {len(found)} outputs do). Give another "
                "folder, or allow to overwrite."
            )
    return list(found.values())


def _name_below(file: DataFile) -> str:
    """Return a file's name below the root folder, or the fixed folder of a glob."""
    base, inner = file.base.rstrip("/") + "/", file.inner
    return inner[len(base) :] if inner.startswith(base) else posixpath.basename(inner)


def _would_read(file: DataFile, folder: str, outputs: Sequence[str]) -> bool:
    """Return whether outputs in a folder would be among the files of the input of a file."""
    _, root = store_of(file.root)
    if not f"{folder}/".startswith(file.base.rstrip("/") + "/"):
        return False
    return file.base == root or any(reaches(root, output) for output in outputs)


def transform_file(model: SavedModel, job: Transform, work: Work) -> Outcome:
    """Score a file; an error is returned in the outcome, and then there is no output."""
    try:
        store, folder = store_of(job.output)
        with (
            work.file.open() as stream,
            atomic_write(posixpath.join(folder, work.target), store=store) as out,
        ):
            n_rows = transform(unzipped(stream), out, Scorer(model), job)
    except GZIP_ERRORS as err:
        return Outcome(work.file.path, 0, f"The compressed data are damaged ({err}).")
    except (SparkFMError, OSError) as err:
        return Outcome(work.file.path, 0, str(err) or type(err).__name__)
    except Exception as err:  # a fault of ours, which must not stop the files after it
        log.info("failed on %s", work.file.path, exc_info=True)
        return Outcome(
            work.file.path, 0,
            "It cannot be scored, for a reason that spark_fm does not know "
            f"({type(err).__name__}: {str(err)[:200]}). Report it with the file.",
        )  # fmt: skip
    return Outcome(work.file.path, n_rows)


def transform(stream: BinaryIO, out: BinaryIO, scorer: Scorer, job: Transform) -> int:
    """Score a stream into another, and return the number of rows.

    Raises RequestError for the first instance that cannot be scored; those before it may be
    written. Memory is bounded as in `read_requests`.
    """
    kind, shape = content_type_of(job.content_type), job.shape()
    if shape is not None and isinstance(kind, JsonType):
        pieces = kind.shaped(stream, scorer, scorer.feature_dim, shape)
    elif job.join:
        pieces = kind.join(stream, scorer, scorer.feature_dim)
    else:
        batches = read_requests(stream, job.content_type, feature_dim=scorer.feature_dim)
        n_rows = write_responses(map(scorer, batches), out, job.accept)
        if job.assemble_with == LINE and job.accept == JSON:
            out.write(b"\n")
        return n_rows
    n_rows = 0
    for data, n in pieces:
        out.write(data)
        n_rows += n
    return n_rows


class Scorer:
    """A saved model as a function of rows."""

    def __init__(self, model: SavedModel) -> None:
        self._model = model
        self._threshold = float(model.params["threshold"])
        self.feature_dim = model.weights.feature_dim

    def __call__(self, batch: CsrBatch) -> Predictions:
        """Return scores and, of a classifier, labels."""
        scores = self._model.predict(batch)
        if not LOSSES[self._model.loss].is_classifier:
            return Predictions(scores, None)
        return Predictions(scores, predicted_labels(scores, self._threshold))
