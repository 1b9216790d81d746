"""Lines of libsvm and libfm: parsed many at once, and written.

Lines of libffm are read as either, without their fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import GZIP_ERRORS
from spark_fm.formats.ranges import CHUNK_BYTES
from spark_fm.formats.recordio.reader import Rows, summed
from spark_fm.formats.text_kernel import MAX_POWER, parse_lines
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column

MAX_LINE_BYTES = 2**28


def read_text(
    stream: BinaryIO, parser: LineParser, *, source: str, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Rows]:
    """Yield the rows of a stream of lines, in bounded memory.

    Raises InvalidDataError with ``source``, line number and reason for a line that cannot be
    read.
    """
    n_lines, rest = 0, b""
    while True:
        try:
            taken = stream.read(chunk_bytes)
        except GZIP_ERRORS as err:
            raise InvalidDataError(
                f"{source}: the compressed data are damaged after line {n_lines}: {err}."
            ) from None
        whole, newline, rest = (rest + taken).rpartition(b"\n")
        if not taken:
            whole, rest = rest, b""
        elif not newline:
            if len(rest) > MAX_LINE_BYTES:
                raise InvalidDataError(
                    f"{source}: line {n_lines + 1} has more than {MAX_LINE_BYTES:,} bytes. Is it "
                    "a text file?"
                )
            continue
        lines = lines_of(whole)
        yield _parsed(lines, parser, source, first_line=n_lines + 1)
        n_lines += len(lines)
        if not taken:
            return


def lines_of(text: bytes) -> pa.Array:
    """Return lines, each with its newline, for ``LineParser.parse``; no copy."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends, [len(text)]])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _parsed(lines: pa.Array, parser: LineParser, source: str, first_line: int) -> Rows:
    found = parser.parse(lines)
    if found.errors:
        row = min(found.errors)
        position = int(found.positions[row])
        raise InvalidDataError(
            f"{source}: line {first_line + position}, {shortened(text_of(lines[position]))!r}: "
            f"{found.errors[row]}."
        )
    indptr, indices, values = summed(found.indptr.astype(np.int64), found.indices, found.values)
    width = parser.num_features or -1
    labels = np.where(found.has_label, found.labels, np.nan)
    n = found.n_rows
    return Rows(indptr, indices, values, labels, np.full(n, width), np.zeros(n, np.bool_))


def text_of(line: pa.Scalar) -> str:
    """Return a line, of bytes that may be no UTF-8, as text without white space around it."""
    raw: bytes = line.cast(pa.large_binary()).as_py() or b""
    return raw.decode("utf-8", "replace").strip()


def text_lines(rows: Rows, text_format: TextFormat, *, first_row: int = 0) -> bytes:
    """Return rows as lines; ``first_row`` is the number of the first row in errors.

    Numbers are the shortest decimals that read back the same: as float32 if all numbers of
    the batch are float32, else as float64. Zeros of dense rows are left out.
    """
    unlabelled = np.isnan(rows.labels)
    if unlabelled.any():
        raise InvalidDataError(
            f"Row {first_row + int(unlabelled.argmax())} has no label, which a line of "
            f"{text_format} needs. Choose a number for such rows (--missing-label 0)."
        )
    if not rows.n_rows:
        return b""
    lengths = np.diff(rows.indptr)
    kept = ~np.repeat(rows.is_dense, lengths) | (rows.values != 0)
    starts = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    names = pc.cast(pa.array(rows.indices[kept].astype(np.int64) + FIRST_INDEX[text_format]),
                    pa.string())  # fmt: skip
    pairs = pc.binary_join_element_wise(names, _decimals(rows.values[kept]), ":")
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pairs), " ")
    labels = _decimals(rows.labels)
    ends = pa.array(np.where(np.diff(starts) > 0, " ", ""))
    lines = pc.binary_join_element_wise(labels, ends, joined, "")
    return ("\n".join(lines.to_pylist()) + "\n").encode()


def _decimals(numbers: NDArray[np.float64]) -> pa.Array:
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    fits = np.array_equal(small, numbers, equal_nan=True)
    return pc.cast(pa.array(small if fits else numbers), pa.string())


TextFormat = Literal["libsvm", "libfm"]

FIRST_INDEX: dict[TextFormat, int] = {"libsvm": 1, "libfm": 0}
MAX_FEATURE_ID = 2**31 - 2
MAX_DIGITS = 11  # of an index: more than MAX_FEATURE_ID has
SHOWN_CHARACTERS = 80
POWERS_OF_TEN = 10.0 ** np.arange(MAX_POWER + 1)

_BOM = "\ufeff"
_INDEX = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_ANY_NUMBER = rf"^({_NUMBER.pattern}|(?i:{_NOT_FINITE.pattern}))$"


@dataclass(frozen=True, slots=True)
class ParsedLines:
    """The rows of a batch of lines without the blank ones."""

    labels: NDArray[np.float64]  # (n_rows,): NaN without a label
    has_label: NDArray[np.bool_]
    indptr: NDArray[np.int64]  # (n_rows + 1,)
    indices: NDArray[np.int32]  # (nnz,), from 0, in the order of the line
    values: NDArray[np.float64]  # (nnz,)
    positions: NDArray[np.int64]  # the line of the batch of each row
    errors: dict[int, str]  # why a row is invalid, by row; it has no entries

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def sizes(self, num_features: int) -> NDArray[np.int64]:
        """Return the length of each vector, for 0 up to its last index."""
        sizes = np.full(self.n_rows, num_features, np.int64)
        if not num_features and len(self.indices):
            filled = np.flatnonzero(np.diff(self.indptr))
            sizes[filled] = np.maximum.reduceat(self.indices, self.indptr[filled]) + 1
        return sizes


@dataclass(frozen=True, slots=True)
class LineParser:
    """How lines are read."""

    text_format: TextFormat
    num_features: int = 0  # indices are below; 0: any, and vectors end with their last index
    needs_label: bool = True  # a line without a label is an error

    def parse(self, lines: pa.Array) -> ParsedLines:
        """Parse a batch: all at once, or line by line if it has anything unusual."""
        found = self._parse_fast(lines)
        return self._parse_each(lines) if found is None else found

    def _parse_fast(self, lines: pa.Array) -> ParsedLines | None:
        """Return the rows of well-formed lines, None when a line needs a closer look."""
        data, starts = _bytes_of(lines)
        n_lines = len(lines)
        most = int(np.count_nonzero(data == ord(":")))
        positions, row_ends = np.empty((2, n_lines), np.int64)
        has_label = np.empty(n_lines, np.bool_)
        label_mantissas, label_powers = np.empty(n_lines, np.int64), np.empty(n_lines, np.int8)
        indices = np.empty(most, np.int32)
        mantissas, powers = np.empty(most, np.int64), np.empty(most, np.int8)
        texts = np.empty((most + n_lines, 3), np.int64)
        n_rows, nnz, n_texts = parse_lines(
            data, starts, FIRST_INDEX[self.text_format], self._last_index(), self.needs_label,
            positions, has_label, row_ends, label_mantissas, label_powers,
            indices, mantissas, powers, texts,
        )  # fmt: skip
        if n_rows < 0:
            return None
        labels = _doubles(label_mantissas[:n_rows], label_powers[:n_rows])
        values = _doubles(mantissas[:nnz], powers[:nnz])
        if n_texts:
            at, *spans = texts[:n_texts].T
            numbers = _numbers_of_texts(data, *spans)
            if numbers is None:
                return None
            is_label = at < 0
            labels[-1 - at[is_label]] = numbers[is_label]
            values[at[~is_label]] = numbers[~is_label]
        labels[~has_label[:n_rows]] = np.nan
        return ParsedLines(
            labels, has_label[:n_rows], np.concatenate([[0], row_ends[:n_rows]]),
            indices[:nnz], values, positions[:n_rows], {},
        )  # fmt: skip

    def _last_index(self) -> int:
        return self.num_features - 1 if self.num_features else MAX_FEATURE_ID

    def _parse_each(self, lines: pa.Array) -> ParsedLines:
        """Parse line by line, with the reason for each that cannot be read."""
        labels: list[float | None] = []
        lengths, positions = [0], []
        indices: list[int] = []
        values: list[float] = []
        errors: dict[int, str] = {}
        for position, raw in enumerate(pc.cast(lines, pa.large_binary())):
            text = (raw.as_py() or b"").decode("utf-8", "replace").lstrip(_BOM)
            tokens = text.split("#", 1)[0].split()
            if not tokens:
                continue
            try:
                label, entries = self.parse_tokens(tokens)
            except ValueError as err:
                errors[len(labels)] = str(err)
                label, entries = None, []
            labels.append(label)
            lengths.append(len(entries))
            positions.append(position)
            indices += [index for index, _ in entries]
            values += [value for _, value in entries]
        return ParsedLines(
            labels=np.array([np.nan if label is None else label for label in labels], np.float64),
            has_label=np.array([label is not None for label in labels], bool),
            indptr=np.cumsum(lengths),
            indices=np.array(indices, np.int32),
            values=np.array(values, np.float64),
            positions=np.array(positions, np.int64),
            errors=errors,
        )

    def parse_tokens(self, tokens: list[str]) -> tuple[float | None, list[tuple[int, float]]]:
        """Return label and entries of one line's tokens, or raise ValueError with the reason."""
        label: float | None = None
        if ":" in tokens[0]:
            if self.needs_label:
                raise ValueError(
                    f"it has no label: it starts with {shortened(tokens[0])}, expected a number"
                )
        else:
            label = _number(tokens[0], "the label")
            tokens = tokens[1:]
        return label, [self._entry(token) for token in tokens if not token.startswith("qid:")]

    def _entry(self, token: str) -> tuple[int, float]:
        field, _, rest = token.partition(":")
        has_field = ":" in rest and field.isdecimal() and field.isascii()
        index_text, colon, value_text = (rest if has_field else token).partition(":")
        if not colon or ":" in value_text or not _INDEX.fullmatch(index_text):
            raise ValueError(f"{shortened(token)} is not index:value")
        first, last = FIRST_INDEX[self.text_format], self._last_index()
        # Cut where it is out of range anyway: Python refuses to read thousands of digits.
        digits = index_text.lstrip("-").lstrip("0")[:MAX_DIGITS] or "0"
        index = (-int(digits) if index_text.startswith("-") else int(digits)) - first
        if index < 0:
            hint = " (is it a libfm file?)" if index + first == 0 else ""
            raise ValueError(
                f"index {shortened(index_text)} is below {first}, the first of a "
                f"{self.text_format} file{hint}"
            )
        if index > last:
            limit = f"{self.num_features} features" if self.num_features else "2^31 - 1 features"
            raise ValueError(
                f"index {shortened(index_text)} is above {last + first}, the last of {limit}"
            )
        return index, _number(value_text, f"the value of {shortened(token)}")


@dataclass(frozen=True)
class ParseTask:
    """Lines to rows: for ``mapInArrow`` over a column ``value`` and maybe ``input_file``.

    A line that cannot be read gives null features and a null label, which training and
    scoring count or refuse as the user asked.
    """

    parser: LineParser
    label_col: str
    features_col: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = self.parser.parse(batch.column("value"))
            is_null = np.zeros(rows.n_rows, bool)
            is_null[list(rows.errors)] = True
            features = vector_column(
                rows.indptr, rows.indices, rows.values, rows.sizes(self.parser.num_features),
                is_dense=np.zeros(rows.n_rows, bool), is_null=is_null,
            )  # fmt: skip
            columns: dict[str, tuple[Any, pa.Array]] = {
                self.label_col: (
                    pa.float64(), pa.array(rows.labels, pa.float64(), mask=~rows.has_label)
                ),
                self.features_col: (VECTOR_TYPE, features),
            }  # fmt: skip
            if "input_file" in batch.schema.names:
                files = batch.column("input_file").take(pa.array(rows.positions))
                columns["input_file"] = (files.type, files)
            yield pa.RecordBatch.from_arrays(
                [column for _, column in columns.values()],
                schema=pa.schema([(name, kind) for name, (kind, _) in columns.items()]),
            )


def _bytes_of(lines: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """Return the bytes of all lines, and where each starts and the last one ends."""
    if not len(lines):
        return np.zeros(0, np.uint8), np.zeros(1, np.int32)
    is_large = pa.types.is_large_string(lines.type) or pa.types.is_large_binary(lines.type)
    _, offsets, data = lines.buffers()
    if data is None or offsets is None:
        return np.zeros(0, np.uint8), np.zeros(len(lines) + 1, np.int32)
    all_starts = np.frombuffer(offsets, np.int64 if is_large else np.int32)
    starts = all_starts[lines.offset : lines.offset + len(lines) + 1]
    return np.frombuffer(data, np.uint8)[starts[0] : starts[-1]], starts - starts[0]


def _doubles(mantissas: NDArray[np.int64], powers: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return mantissa times ten to the power, rounded once; anything where it is BY_TEXT."""
    numbers = mantissas.astype(np.float64)
    if powers.any():
        scaled = POWERS_OF_TEN[np.minimum(np.abs(powers), MAX_POWER)]
        np.multiply(numbers, scaled, out=numbers, where=powers > 0)
        np.divide(numbers, scaled, out=numbers, where=powers < 0)
    return numbers


def _numbers_of_texts(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Return the numbers that spans of bytes write; None when one is no number."""
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    taken = data[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
    texts = pa.LargeStringArray.from_buffers(
        len(lengths), pa.py_buffer(offsets), pa.py_buffer(taken)
    )
    is_letter = (taken >= ord("A")) & (taken | 32 != ord("e"))
    if is_letter.any() and not pc.all(pc.match_substring_regex(texts, _ANY_NUMBER)).as_py():
        return None
    try:
        return np.asarray(pc.cast(texts, pa.float64()))
    except pa.ArrowInvalid:
        return None


def _number(text: str, what: str) -> float:
    if not _NUMBER.fullmatch(text) and not _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{what} is {shortened(text) or 'empty'}, not a number")
    return float(text)


def shortened(text: str) -> str:
    """Return the text, or its beginning when it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
