"""libFM's text model, read and written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.files import (
    BYTE_ORDER_MARK,
    atomic_write,
    local_path,
    open_plain_file,
)
from spark_fm.formats.models.native import SavedModel, check_sizes, checked_weights, imported_model

BIAS = "#global bias W0"
LINEAR = "#unary interactions Wj"
FACTORS = "#pairwise interactions Vj,f"
SECTIONS = (BIAS, LINEAR, FACTORS)  # in the order in which libFM expects them
MAX_NUMBERS = 2**32


@dataclass(frozen=True, slots=True)
class _Section:
    title: str
    text: memoryview
    line: int  # of the file, in which the text begins

    @property
    def n_lines(self) -> int:
        """Number of lines; the last may lack its end."""
        data = bytes(self.text)
        return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))


def read_libfm(path: str, *, predictor_type: str, threshold: float = 0.5) -> SavedModel:
    """Read a text model of libFM; the file does not show its ``-task c`` or ``r``.

    Raises ModelFormatError with the section and the line at fault.

    Notes
    -----
    libFM writes six digits, so its own predictions differ from ours in the sixth. Its SGD
    has the logistic link that we have; its ALS classifier has the normal distribution
    function instead, which orders rows alike. A regressor of libFM cuts its predictions
    to the range of the training labels, which the file does not hold. A model without
    factors becomes one with a factor of zeros.

    References
    ----------
    libFM 1.4.4, srendle/libfm, src/fm_core/fm_model.h.
    """
    with open_plain_file(path) as stream:
        data = stream.read().removeprefix(BYTE_ORDER_MARK)
    sections = _sections(memoryview(data), path)
    bias = _bias(sections[BIAS], path) if BIAS in sections else 0.0
    factors = _factors(sections[FACTORS], path)
    n, k = factors.shape
    check_sizes(n, k, path)
    table: NDArray[np.float32] = np.zeros((n, k + 1), np.float32)
    table[:, :k] = factors
    if LINEAR in sections:
        where = _where(sections[LINEAR], path)
        [linear] = read_lines(sections[LINEAR].text, n_columns=1, source=where)
        if len(linear) != n:
            raise ModelFormatError(
                f"{path} is damaged: it has {len(linear):,} linear weights, and factors of {n:,} "
                "features."
            )
        table[:, k] = linear
    weights = checked_weights(bias, table, n, source=path)
    return imported_model(weights, predictor_type, threshold=threshold, origin={"format": "libfm"})


def write_libfm(path: str, model: SavedModel) -> None:
    """Write a local text model that libFM loads.

    Raises InvalidParamError for more than 2^32 numbers: the format lists every feature. They
    have the shortest digits that read back as the same float32, or float64 for the bias. libFM
    takes the number of features from its data, which must have the model's.
    """
    weights = model.weights
    n_numbers = weights.feature_dim * (weights.k + 1)
    if n_numbers > MAX_NUMBERS:
        raise InvalidParamError(
            f"libFM's format lists all {weights.feature_dim:,} features of the model, "
            f"{n_numbers:,} numbers; at most {MAX_NUMBERS:,} are written. Use the text or "
            "sagemaker format, which list the features that were seen."
        )

    def rows(span: slice) -> NDArray[np.float32]:
        if weights.features is None:
            return weights.table[span]
        block: NDArray[np.float32] = np.zeros((span.stop - span.start, weights.k + 1), np.float32)
        first, last = np.searchsorted(weights.features, [span.start, span.stop])
        block[weights.features[first:last] - span.start] = weights.table[first:last]
        return block

    with atomic_write(local_path(path, "path")) as file:
        file.write(f"{BIAS}\n{weights.bias!r}\n{LINEAR}\n".encode())
        write_lines(file, weights.feature_dim, lambda span: [rows(span)[:, -1]])
        file.write(f"{FACTORS}\n".encode())
        write_lines(file, weights.feature_dim, lambda span: list(rows(span)[:, :-1].T))


def _sections(data: memoryview, path: str) -> dict[str, _Section]:
    found: dict[str, _Section] = {}
    titles = list(re.finditer(rb"^#[^\n]*(?:\n|\Z)", data, re.MULTILINE))
    if not titles or titles[0].start():
        raise ModelFormatError(
            f"{path} is no text model of libFM: its first line is not {BIAS!r}, {LINEAR!r} or "
            f"{FACTORS!r}. libFM writes one with -save_model."
        )
    ends = [title.start() for title in titles[1:]] + [len(data)]
    line = 1
    for match, end in zip(titles, ends, strict=True):
        title = bytes(match.group()).decode(errors="replace").strip()
        sections_so_far = [SECTIONS.index(name) for name in found]
        if title not in SECTIONS or SECTIONS.index(title) <= max(sections_so_far, default=-1):
            raise ModelFormatError(
                f"{path} is damaged: line {line} is {title[:80]!r}, which no section of libFM "
                "begins with there."
            )
        found[title] = _Section(title, data[match.end() : end], line + 1)
        line += bytes(data[match.start() : end]).count(b"\n")
    if FACTORS not in found:
        raise ModelFormatError(f"{path} is damaged: it has no section {FACTORS!r}.")
    return found


def _bias(section: _Section, path: str) -> float:
    try:
        return float(bytes(section.text))  # a float64, as in libFM
    except ValueError:
        raise ModelFormatError(
            f"{_where(section, path)} is damaged: expected one number."
        ) from None


def _factors(section: _Section, path: str) -> NDArray[np.float32]:
    first = bytes(section.text[: _length_of_line(section.text)])
    k = len(first.split())
    if k == 0:
        if bytes(section.text).strip():
            raise ModelFormatError(f"{_where(section, path)} is damaged: its first line is empty.")
        return np.zeros((section.n_lines, 1), np.float32)
    columns = read_lines(section.text, n_columns=k, source=_where(section, path))
    return cast(NDArray[np.float32], np.stack(columns, axis=1))


def _length_of_line(text: memoryview) -> int:
    found = re.search(rb"\n", text)
    return len(text) if found is None else found.start()


def _where(section: _Section, path: str) -> str:
    return f"{path}, section {section.title!r} from line {section.line:,}"


BLOCK_ROWS = 2**16
BLOCK_BYTES = 16 * 2**20
_WRITE = csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")


def write_lines(
    file: BinaryIO, n_rows: int, columns_of: Callable[[slice], list[NDArray[Any]]]
) -> None:
    """Write rows as lines; ``columns_of`` returns the int32 or float32 columns of a range."""
    for start in range(0, n_rows, BLOCK_ROWS):
        columns = columns_of(slice(start, min(start + BLOCK_ROWS, n_rows)))
        arrays = [pa.array(np.ascontiguousarray(column)) for column in columns]
        names = [str(i) for i in range(len(arrays))]
        csv.write_csv(pa.table(arrays, names=names), file, _WRITE)


def read_lines(
    text: memoryview, *, n_columns: int, has_ids: bool = False, source: str
) -> list[NDArray[Any]]:
    """Return the columns of lines: float32, after an int32 with ``has_ids``.

    Raises ModelFormatError for a line with other than ``n_columns`` numbers; NaN and infinities
    are read.
    """
    types = [pa.int32() if has_ids and i == 0 else pa.float32() for i in range(n_columns)]
    if not len(text):
        return [np.zeros(0, kind.to_pandas_dtype()) for kind in types]
    names = [str(i) for i in range(n_columns)]
    try:
        table = csv.read_csv(
            pa.BufferReader(pa.py_buffer(text)),
            # One thread, because only then an error names the row.
            csv.ReadOptions(
                column_names=names, use_threads=False,
                block_size=min(max(BLOCK_BYTES, 64 * n_columns), 2**30),
            ),
            csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types=dict(zip(names, types, strict=True)), null_values=[],
                strings_can_be_null=False,
            ),
        )  # fmt: skip
    except pa.ArrowException as err:
        raise ModelFormatError(f"{source} is damaged: {_reason(err)}.") from err
    return [column.to_numpy() for column in table.columns]


def _reason(err: Exception) -> str:
    """Return Arrow's reason in one line of bounded length."""
    return " ".join(str(err).split()).rstrip(".")[:300]
