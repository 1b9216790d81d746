"""Batch transform as SageMaker has it: a ``.out`` file for each input file, joined on request."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from spark_fm.errors import InvalidDataError, InvalidParamError, SparkFMError
from spark_fm.formats.content_types import Predictions, content_type_of
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
from spark_fm.formats.models.native import SavedModel
from spark_fm.formats.requests import read_requests
from spark_fm.formats.responses import write_responses
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
    """Return the default type of the output: lines for records, else the input's."""
    return content_type if join else content_type_of(content_type).batch_accept or content_type


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
    n_rows = 0
    for data, n in content_type_of(job.content_type).join(stream, scorer, scorer.feature_dim):
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
