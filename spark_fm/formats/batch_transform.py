"""Batch transform as SageMaker has it: a ``.out`` file for each input file, joined on request."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np

from spark_fm.errors import InvalidDataError, InvalidParamError, RequestError, SparkFMError
from spark_fm.formats.files import (
    GZIP_ERRORS,
    DataFile,
    atomic_write,
    folder_of_glob,
    list_files,
    reaches,
    store_of,
    unzipped,
)
from spark_fm.formats.json_instances import decode_lines
from spark_fm.formats.models.native import SavedModel
from spark_fm.formats.recordio.decode import Frames
from spark_fm.formats.recordio.framing import HEADER_SIZE, MAGIC_BYTES, MAX_PAYLOAD, padded
from spark_fm.formats.recordio.reader import RecordReader
from spark_fm.formats.requests import (
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    checked_records,
    decode_request,
    line_blocks,
    read_document,
    read_requests,
    refuse_record,
)
from spark_fm.formats.responses import (
    Predictions,
    encode_each,
    encode_response,
    prediction_texts,
    write_responses,
)
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import predicted_labels

log = logging.getLogger(__name__)

SUFFIX = ".out"


@dataclass(frozen=True, slots=True)
class Transform:
    """What is done to every file.

    Parameters
    ----------
    content_type : str
        Of the input: one of CONTENT_TYPES.
    accept : str
        Of the output; with ``join`` it is the input's.
    output : str
        Folder, of any store that pyarrow or fsspec knows.
    join : bool
        Write each instance together with its prediction.
    """

    content_type: str
    accept: str
    output: str
    join: bool = False

    def __post_init__(self) -> None:
        """Check that the formats go together."""
        if self.join and self.accept != self.content_type:
            raise InvalidParamError(
                f"A join writes instances as they came, {self.content_type}, and not as "
                f"{self.accept}. Leave the output's type out, or do not join."
            )


@dataclass(frozen=True, slots=True)
class Work:
    """A file and where its output goes.

    Parameters
    ----------
    file : DataFile
    target : str
        Path below the output folder.
    """

    file: DataFile
    target: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: its rows, or the error that kept it from being scored."""

    path: str
    n_rows: int
    error: str | None = None


def default_accept(content_type: str, *, join: bool) -> str:
    """Return what the output is when nobody says: lines for records, else as the input."""
    return JSONLINES if content_type == RECORDIO_PROTOBUF and not join else content_type


def plan(paths: Sequence[str], job: Transform, *, overwrite: bool) -> list[Work]:
    """Return the files to score, each with the name of its output.

    Parameters
    ----------
    paths : sequence of str
        Files, folders, globs or manifests. Folders in a folder, or below the part of a
        glob before its first wildcard, keep their names.
    job : Transform
    overwrite : bool

    Raises
    ------
    InvalidDataError
        When there is no file, two files would have the same output, an output exists that
        may not be replaced, or the outputs would lie among the inputs.
    """
    store, folder = store_of(job.output)
    folder = folder.rstrip("/")
    found: dict[str, Work] = {}
    roots: dict[str, str] = {}
    for file in list_files(list(paths), recursive=True):
        if file.root not in roots:
            _, roots[file.root] = store_of(file.root)
        work = Work(file, _name_below(roots[file.root], file.inner) + SUFFIX)
        if work.target in found:
            raise InvalidDataError(
                f"{found[work.target].file.path} and {file.path} would both become {work.target}. "
                "Score them into different folders."
            )
        found[work.target] = work
    outputs = [f"{folder}/{target}" for target in found]
    for root, inner in roots.items():
        if _would_read(inner, folder, outputs):
            raise InvalidDataError(
                f"The output {job.output} lies in the input {root}, where the next run would "
                "read it. Choose a folder outside."
            )
    if not found:
        raise InvalidDataError(f"There is no data in {', '.join(paths)}.")
    if not overwrite:
        infos = store.get_file_info([posixpath.join(folder, target) for target in found])
        there = [info.path for info in infos if info.type.name != "NotFound"]
        if there:
            raise InvalidDataError(
                f"{there[0]} exists ({len(there)} of {len(found)} outputs do). Give another "
                "folder, or allow to overwrite."
            )
    return list(found.values())


def _name_below(root: str, inner: str) -> str:
    """Return a file's name below the folder, or below the fixed folder of the glob, given."""
    base = (folder_of_glob(root) or root).rstrip("/") + "/"
    return inner[len(base) :] if inner.startswith(base) else posixpath.basename(inner)


def _would_read(root: str, folder: str, outputs: Sequence[str]) -> bool:
    """Tell whether outputs in a folder would be among the files of an input."""
    fixed = folder_of_glob(root)
    if not f"{folder}/".startswith((fixed or root).rstrip("/") + "/"):
        return False
    return fixed is None or any(reaches(root, output) for output in outputs)


def transform_file(model: SavedModel, job: Transform, work: Work) -> Outcome:
    """Score a file; whatever goes wrong is in the outcome, and then there is no output."""
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

    Raises
    ------
    RequestError
        For the first instance that cannot be scored; those before it may be written.

    Notes
    -----
    Memory is bounded as in `read_requests`.
    """
    if not job.join:
        batches = read_requests(stream, job.content_type, feature_dim=scorer.feature_dim)
        return write_responses(map(scorer, batches), out, job.accept)
    join: Callable[..., Iterator[tuple[bytes, int]]] = {
        JSON: join_document, JSONLINES: join_lines, RECORDIO_PROTOBUF: join_records,
    }[job.content_type]  # fmt: skip
    n_rows = 0
    for data, n in join(stream, scorer, feature_dim=scorer.feature_dim):
        out.write(data)
        n_rows += n
    return n_rows


class Scorer:
    """A saved model as a function of rows.

    Parameters
    ----------
    model : SavedModel
    """

    def __init__(self, model: SavedModel) -> None:
        self._model = model
        self._threshold = float(model.params["threshold"])
        self.feature_dim = model.weights.feature_dim

    def __call__(self, batch: CsrBatch) -> Predictions:
        """Return scores and, of a classifier, labels."""
        scores = self._model.predict(batch)
        if self._model.loss != "logistic":
            return Predictions(scores, None)
        return Predictions(scores, predicted_labels(scores, self._threshold))


MEMBER = b'"SageMakerOutput": '


def join_document(
    stream: BinaryIO, scorer: Scorer, *, feature_dim: int
) -> Iterator[tuple[bytes, int]]:
    """Yield a JSON document with its response in it, and the number of rows."""
    body = read_document(stream)
    rows = decode_request(body, JSON, feature_dim=feature_dim)
    found = scorer(rows)
    yield _with_member(body.strip(), encode_response(found.scores, found.labels, JSON)), rows.n_rows


def join_lines(
    stream: BinaryIO, scorer: Scorer, *, feature_dim: int
) -> Iterator[tuple[bytes, int]]:
    """Yield JSON lines with their predictions in them, and their number."""
    first = 0
    for block in line_blocks(stream):
        rows = decode_lines(block, feature_dim, first)
        if rows is None:
            continue
        found = scorer(rows)
        texts = prediction_texts(found.scores, found.labels, first)
        lines = filter(None, (line.strip(b" \t\r") for line in block.split(b"\n")))
        joined = [_with_member(*each) + b"\n" for each in zip(lines, texts, strict=True)]
        yield b"".join(joined), rows.n_rows
        first += rows.n_rows


def _with_member(instance: bytes, prediction: bytes) -> bytes:
    """Return an object, which has members already, with one more."""
    return instance[:-1] + b", " + MEMBER + prediction + b"}"


def join_records(
    stream: BinaryIO, scorer: Scorer, *, feature_dim: int
) -> Iterator[tuple[bytes, int]]:
    """Yield records with score and label in their label maps, and their number.

    All else in a record stays as it is; parts of one are put together.
    """
    kept = _Kept(stream)
    first = 0
    for batch in RecordReader(cast(BinaryIO, kept), on_malformed=refuse_record):
        found = scorer(checked_records(batch, feature_dim, first))
        entries = [
            record[HEADER_SIZE : HEADER_SIZE + int.from_bytes(record[4:8], "little")]
            for record in encode_each(found.scores, found.labels, RECORDIO_PROTOBUF, first)
        ]
        payloads = kept.payloads(batch.offsets.tolist())
        joined = [
            _framed(payload + entry, first + row)
            for row, (payload, entry) in enumerate(zip(payloads, entries, strict=True))
        ]
        yield b"".join(joined), batch.n_rows
        first += batch.n_rows


def _framed(payload: bytes, number: int) -> bytes:
    size = len(payload)
    if size > MAX_PAYLOAD:
        raise RequestError(
            f"Instance {number} has {size} bytes with its prediction; a record has up to "
            f"{MAX_PAYLOAD}. Leave zeros out.",
            instance=number,
        )
    return MAGIC_BYTES + size.to_bytes(4, "little") + payload + bytes(padded(size) - size)


class _Kept:
    """A stream whose bytes are kept until their records have been taken out."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._bytes = bytearray()
        self._start = 0  # place of the first kept byte in the stream

    def read(self, size: int) -> bytes:
        taken: bytes = self._stream.read(size)
        self._bytes += taken
        return taken

    def payloads(self, offsets: list[int]) -> list[bytes]:
        """Return the payloads of the records at these places, which rise, and forget them."""
        data = np.frombuffer(bytes(self._bytes), np.uint8)
        frames = Frames(data, True, MAX_PAYLOAD)
        found, end = [], 0
        for offset in offsets:
            parts, end = frames.extent(offset - self._start)
            found.append(frames.payload(parts))
        del self._bytes[:end]
        self._start += end
        return found
