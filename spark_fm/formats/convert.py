"""Convert between file formats in one process, without Spark."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.files import (
    GZIP_SUFFIXES,
    DataFile,
    atomic_write,
    is_stream,
    list_files,
    local_path,
    open_stream,
    unzipped,
)
from spark_fm.formats.npz import NpzSink, read_npz
from spark_fm.formats.parquet import ParquetSink, read_parquet
from spark_fm.formats.recordio.encode import encode_records
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.formats.recordio.reader import RecordReader, Rows
from spark_fm.formats.text import LineParser, TextFormat, read_text, text_lines

TEXT_FORMATS = ("libsvm", "libfm")
FORMATS = (*TEXT_FORMATS, "parquet", "npz", RECORDIO)
_SUFFIXES = {
    ".libsvm": "libsvm", ".svm": "libsvm", ".svmlight": "libsvm", ".libfm": "libfm",
    ".libffm": "libfm", ".ffm": "libfm",
    ".parquet": "parquet", ".npz": "npz", ".pbr": RECORDIO, ".recordio": RECORDIO,
    ".rec": RECORDIO, ".protobuf": RECORDIO,
}  # fmt: skip

# What people have, and what does not say which features its columns and members are.
_TABLES = {"csv": "CSV", "tsv": "CSV", "json": "JSON", "jsonl": "JSON", "jsonlines": "JSON",
           "ndjson": "JSON"}  # fmt: skip
_READERS = {"CSV": "csv(path, header=True, inferSchema=True)", "JSON": "json(path)"}

# Called with what is being done, and the bytes done and in all (0: not known).
ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """The arguments of a conversion."""

    inputs: tuple[str, ...]  # files, folders, globs, named pipes; "-" is standard input
    output: str  # a local file; text and records are compressed when it is called .gz
    input_format: str | None = None  # one of FORMATS; None: that of each name's suffix
    output_format: str | None = None
    # None: as in the files, or else the largest index, for which text is read twice.
    num_features: int | None = None
    label_col: str = "label"  # of Parquet files
    features_col: str = "features"
    missing_label: float | None = None  # of rows without a label


@dataclass(slots=True)
class Converted:
    """What a conversion wrote."""

    n_rows: int = 0
    n_entries: int = 0
    width: int = 0


def format_of(path: str) -> str | None:
    """Return the format of a name's suffix, None for another suffix."""
    return _SUFFIXES.get(suffix_of(path))


def suffix_of(path: str) -> str:
    """Return the suffix of a name, before that of compression, in lower case."""
    stem = path.removesuffix(".gz").removesuffix(".gzip")
    return os.path.splitext(stem)[1].lower()


def table_advice(kind: str) -> str | None:
    """Return what to do with a table of this format or suffix; None for no table."""
    table = _TABLES.get(kind.lower().lstrip("."))
    if table is None:
        return None
    return (
        f"{table} does not say which feature a column is. Make vectors of it in Spark: "
        f"spark.read.{_READERS[table]}, FeatureHasher(inputCols=[...], outputCol='features') for "
        "text and numbers, then .write.parquet(...) of label and features, which train, evaluate, "
        "score and convert take as parquet (docs/recordio.md has the lines)."
    )


def convert(
    job: Conversion, on_progress: ProgressCallback = lambda what, done, total: None
) -> Converted:
    """Read all inputs, one after the other, and write the output.

    The output appears under its name only when it is complete.

    Raises
    ------
    InvalidParamError
        When a format is not known, or the number of features is needed and cannot be
        found because the input can be read once only.
    InvalidDataError, InvalidColumnError
        For content that cannot be read, or that the output cannot hold.

    Notes
    -----
    Memory: some 100 MB whatever the size of the files, if no single row is larger; a
    matrix in an ``.npz`` is held as a whole.
    """
    path = local_path(job.output, "output")
    kind = _chosen_format(path, job.output_format, "--output-format")
    sources = _sources(job)
    width = job.num_features
    if kind in (RECORDIO, "parquet") and width is None:
        width = _common_width(job, sources, on_progress)
    done = Converted(width=width or 0)
    with ExitStack() as stack:
        out: Any = stack.enter_context(atomic_write(path))
        if path.endswith(GZIP_SUFFIXES):
            if kind in ("parquet", "npz"):
                raise InvalidParamError(f"{path}: {kind} files compress by themselves. Drop .gz.")
            out = stack.enter_context(gzip.GzipFile("", "wb", fileobj=out, mtime=0))
        sink = _sink(kind, out, job)
        stack.callback(sink.discard)
        for rows in _all_rows(job, sources, lambda at, n: on_progress("converting", at, n)):
            rows = _completed(rows, width, job, done.n_rows)
            sink.write(rows)
            done.n_rows += rows.n_rows
            done.n_entries += len(rows.indices)
            done.width = max(done.width, rows.n_features)
        sink.close()
    return done


@dataclass(frozen=True, slots=True)
class _Source:
    path: str
    file_format: str
    size: int
    file: DataFile | None  # None: standard input or a named pipe

    @property
    def is_stream(self) -> bool:
        return self.file is None


def _sources(job: Conversion) -> list[_Source]:
    """Return the files behind the inputs, with their formats."""
    found = []
    for path in job.inputs:
        if is_stream(path):
            kind = _chosen_format(path, job.input_format, "--format")
            found.append(_Source(path, kind, 0, None))
            continue
        for file in list_files([path]):
            kind = _chosen_format(file.path, job.input_format, "--format")
            found.append(_Source(file.path, kind, file.size, file))
    if not found:
        raise InvalidDataError(f"There is no data in {', '.join(job.inputs)}.")
    for source in found:
        if source.is_stream and source.file_format in ("parquet", "npz"):
            raise InvalidParamError(
                f"{source.file_format} cannot be read from a pipe: its index is at the end. Use a "
                "file."
            )
    return found


def _chosen_format(path: str, choice: str | None, flag: str) -> str:
    """Return the format that was chosen, else what the name ends in."""
    kind = choice or format_of(path)
    if kind is None:
        advice = table_advice(suffix_of(path))
        if advice is not None and flag == "--format":
            raise InvalidParamError(f"{path} is not read: {advice}")
        if advice is not None:
            raise InvalidParamError(
                f"{path} is not written: convert writes {', '.join(FORMATS)}. Write parquet, and "
                "let Spark write its columns as you need them."
            )
        raise InvalidParamError(
            f"The format of {path} does not show in its name. Say it with {flag}."
        )
    return kind


def _common_width(job: Conversion, sources: list[_Source], on_progress: ProgressCallback) -> int:
    """Return the number of features of all rows; reads text twice, other files a little."""
    first = sources[0]
    if not first.is_stream and first.file_format not in TEXT_FORMATS:
        batches = _rows_of(job, first, lambda at: None)
        rows = next(batches, None)
        batches.close()
        if rows is not None and rows.n_rows and (rows.widths >= 0).all():
            return int(rows.widths[0])  # others that differ are refused later
    if any(source.is_stream for source in sources):
        raise InvalidParamError(
            "The number of features is needed, and the input can be read only once. Say it with "
            "--num-features."
        )
    width = 0
    for rows in _all_rows(job, sources, lambda at, n: on_progress("counting features", at, n)):
        width = max(width, rows.n_features)
    if not width:
        raise InvalidParamError("No row has a feature. Say their number with --num-features.")
    return width


def _all_rows(
    job: Conversion, sources: list[_Source], on_bytes: Callable[[int, int], None]
) -> Iterator[Rows]:
    """Yield the rows of all files; ``on_bytes`` is called with the bytes read and in all."""
    total = 0 if any(s.is_stream for s in sources) else sum(s.size for s in sources)
    before = 0
    for source in sources:

        def report(n: int, start: int = before) -> None:
            on_bytes(start + n, total)

        yield from _rows_of(job, source, report)
        before += source.size


def _rows_of(
    job: Conversion, source: _Source, on_bytes: Callable[[int], None]
) -> Generator[Rows, None, None]:
    """Yield the rows of one file; ``on_bytes`` is called with the bytes read."""
    with open_stream(source.path) if source.file is None else source.file.open() as stream:
        if source.file_format in ("parquet", "npz"):

            def advance(fraction: float) -> None:
                on_bytes(int(fraction * source.size))

            if source.file_format == "npz":
                yield from read_npz(stream, source=source.path, advance=advance)
            else:
                yield from read_parquet(
                    stream, label_col=job.label_col, features_col=job.features_col,
                    source=source.path, advance=advance,
                )  # fmt: skip
            return
        counted = unzipped(cast(BinaryIO, _Counted(stream, on_bytes)))
        if source.file_format == RECORDIO:
            yield from RecordReader(counted, source=source.path)
        else:
            parser = LineParser(
                cast(TextFormat, source.file_format), job.num_features or 0, needs_label=False
            )
            yield from read_text(counted, parser, source=source.path)


class _Counted:
    """A stream that reports how many bytes were read."""

    def __init__(self, stream: Any, on_bytes: Callable[[int], None]) -> None:
        self._stream, self._on_bytes, self._n = stream, on_bytes, 0

    def read(self, size: int) -> bytes:
        taken = self._stream.read(size)
        self._n += len(taken)
        self._on_bytes(self._n)
        return bytes(taken)


def _completed(rows: Rows, width: int | None, job: Conversion, first_row: int) -> Rows:
    """Return the rows with the width of all, and labels where they were missing."""
    if job.missing_label is not None:
        labels = np.where(np.isnan(rows.labels), job.missing_label, rows.labels)
        rows = _with(rows, labels=labels)
    if width is None:
        return rows
    misfits = rows.misfits(width, is_set=job.num_features is not None)
    if misfits.any():
        row = int(misfits.argmax())
        claim = max(rows.widths[row], rows.tops()[row])
        raise InvalidDataError(
            f"Row {first_row + row} has {claim} features, where {width} were "
            + ("asked for" if job.num_features is not None else "found in others")
            + ". Pass a --num-features that holds for all; dense rows must have just as many."
        )
    return _with(rows, widths=np.full(rows.n_rows, width))


def _with(rows: Rows, **changes: Any) -> Rows:
    """Return plain rows with some arrays changed."""
    plain = Rows(rows.indptr, rows.indices, rows.values, rows.labels, rows.widths, rows.is_dense)
    return replace(plain, **changes)


class _Sink(Protocol):
    def write(self, rows: Rows) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None: ...


def _sink(kind: str, out: BinaryIO, job: Conversion) -> _Sink:
    if kind == "parquet":
        return ParquetSink(out, label_col=job.label_col, features_col=job.features_col)
    if kind == "npz":
        return NpzSink(out)
    return _ByteSink(out, kind)


class _ByteSink:
    """Write rows as records or lines, which need nothing at the end."""

    def __init__(self, out: BinaryIO, kind: str) -> None:
        self._out, self._kind, self._n_rows = out, kind, 0

    def write(self, rows: Rows) -> None:
        """Write rows."""
        if self._kind == RECORDIO:
            self._out.write(encode_records(rows, first_row=self._n_rows))
        else:
            self._out.write(text_lines(rows, cast(TextFormat, self._kind), first_row=self._n_rows))
        self._n_rows += rows.n_rows

    def close(self) -> None:
        """Do nothing."""

    def discard(self) -> None:
        """Do nothing."""
