"""Lines of libsvm and libfm files as rows of Spark vectors; runs on executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spark_fm.formats.text import LineParser, ParsedLines, shortened
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column


@dataclass(frozen=True)
class ParseTask:
    """Lines to rows: for ``mapInArrow`` over a column ``value`` and maybe ``input_file``.

    Parameters
    ----------
    parser : LineParser
    label_col, features_col : str
        Names of the output columns.

    Notes
    -----
    A line that cannot be read gives null features and a null label, which training and
    scoring count or refuse as the user asked.
    """

    parser: LineParser
    label_col: str
    features_col: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield label, features and, where it came in, the input file."""
        for batch in batches:
            rows = self.parser.parse(_column(batch, "value"))
            columns = [
                pa.array(rows.labels, pa.float64(), mask=~rows.has_label),
                _vectors(rows, self.parser.num_features),
            ]
            names = [self.label_col, self.features_col]
            kinds = [pa.float64(), VECTOR_TYPE]
            if "input_file" in batch.schema.names:
                files = _column(batch, "input_file").take(pa.array(rows.positions))
                columns.append(files)
                names.append("input_file")
                kinds.append(files.type)
            schema = pa.schema(list(zip(names, kinds, strict=True)))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class FaultTask:
    """The lines that cannot be read: for ``mapInArrow`` over ``value`` and ``input_file``."""

    parser: LineParser

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield file, shortened line and reason of each bad line."""
        for batch in batches:
            lines = _column(batch, "value")
            rows = self.parser.parse(lines)
            if not rows.errors:
                continue
            at = pa.array(rows.positions[list(rows.errors)])
            raw = pc.cast(lines.take(at), pa.large_binary())
            shown = [shortened(item.as_py().decode("utf-8", "replace").strip()) for item in raw]
            yield pa.RecordBatch.from_arrays(
                [
                    _column(batch, "input_file").take(at).cast(pa.string()),
                    pa.array(shown, pa.string()),
                    pa.array(rows.errors.values(), pa.string()),
                ],
                names=["input_file", "line", "error"],
            )


FAULT_DDL = "input_file string, line string, error string"


def _vectors(rows: ParsedLines, num_features: int) -> pa.StructArray:
    """Return sparse vectors; null for rows with an error."""
    is_null = np.zeros(rows.n_rows, bool)
    is_null[list(rows.errors)] = True
    return vector_column(
        rows.indptr, rows.indices, rows.values, rows.sizes(num_features),
        is_dense=np.zeros(rows.n_rows, bool), is_null=is_null,
    )  # fmt: skip


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))
