"""Rows of a recordIO file as record batches of the data source's schema; executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio.reader import Malformed, RowBatch
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column

if TYPE_CHECKING:
    from spark_fm.datasource.options import ReadOptions

BATCH_ROWS = 2**14


@dataclass(frozen=True, slots=True)
class RowTable:
    """Rows, with the malformed records between them."""

    batch: RowBatch
    sizes: NDArray[np.int64]  # (n_rows,): vector sizes
    order: NDArray[np.int64]  # (n_records,): row of each record; -1 for a malformed one
    reasons: dict[int, str]  # why a record is malformed, by its index in ``order``
    source: str

    @classmethod
    def of(cls, batch: RowBatch, width: int, *, is_set: bool, source: str) -> RowTable:
        """Check the rows against the vectors' size ``width``; 0 if no record was found.

        With ``is_set`` the caller chose the width: it holds for sparse rows whatever they
        claim. Raises InvalidDataError for rows of an unknown width.
        """
        n = batch.n_rows
        if n and not width:
            raise InvalidDataError(
                f"{source}: no record could be read at the beginning of the files, so that the "
                "number of features is not known. Set the option featureDim, such as "
                '.option("featureDim", 100000).'
            )
        order = np.arange(n)
        reasons: dict[int, str] = {}
        bad_rows = np.flatnonzero(batch.misfits(width, is_set=is_set))
        tops = batch.tops() if len(bad_rows) else bad_rows  # for the reasons only
        order[bad_rows] = -1
        next_rows = np.array([bad.row for bad in batch.malformed], np.int64)
        order = np.insert(order, next_rows, -1)
        shifts = np.searchsorted(next_rows, bad_rows, side="right")
        for row, shift in zip(bad_rows.tolist(), shifts.tolist(), strict=True):
            reason = _width_text(int(batch.widths[row]), int(tops[row]), width)
            number = batch.first_record + row + shift
            found = Malformed(
                source, int(batch.offsets[row]), number, row, reason, since=batch.since
            )
            reasons[row + shift] = str(found)
        for i, bad in enumerate(batch.malformed):
            reasons[bad.row + i] = str(bad)
        return cls(batch, np.full(n, width), order, reasons, source)

    def record_batches(self, options: ReadOptions) -> Iterator[pa.RecordBatch]:
        """Yield batches with the columns of ``options``, malformed rows null or left out."""
        order = self.order if options.mode == "PERMISSIVE" else self.order[self.order >= 0]
        for start in range(0, len(order), BATCH_ROWS):
            yield self._record_batch(order[start : start + BATCH_ROWS], start, options)

    def _record_batch(
        self, rows: NDArray[np.int64], first: int, options: ReadOptions
    ) -> pa.RecordBatch:
        batch = self.batch
        is_null = rows < 0
        if not batch.n_rows:
            return self._nulls(len(rows), first, options)
        present = np.where(is_null, 0, rows)
        starts, stops = batch.indptr[present], batch.indptr[present + 1]
        lengths = np.where(is_null, 0, stops - starts)
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        if len(rows) and not is_null.any() and rows[-1] - rows[0] == len(rows) - 1:
            entries: slice | NDArray[np.int64] = slice(int(starts[0]), int(stops[-1]))
        else:
            entries = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        features = vector_column(
            indptr, batch.indices[entries], batch.values[entries], self.sizes[present],
            is_dense=batch.is_dense[present] & ~is_null, is_null=is_null,
        )  # fmt: skip
        labels = batch.labels[present]
        columns = {
            "label": pa.array(labels, pa.float64(), mask=is_null | np.isnan(labels)),
            "features": features,
        }
        for name in options.extra_columns:
            columns[name] = self._texts(name, rows, first)
        return self._as_batch(columns, options)

    def _nulls(self, n: int, first: int, options: ReadOptions) -> pa.RecordBatch:
        """Return the batch of malformed records that have no rows beside them."""
        columns = {"label": pa.nulls(n, pa.float64()), "features": pa.nulls(n, VECTOR_TYPE)}
        for name in options.extra_columns:
            columns[name] = self._texts(name, np.full(n, -1), first)
        return self._as_batch(columns, options)

    def _as_batch(self, columns: dict[str, pa.Array], options: ReadOptions) -> pa.RecordBatch:
        """Return the columns of the query, under its names and in its order."""
        fields, arrays = [], []
        for column in options.asked_columns:
            array = columns[column.name]
            if array.null_count and not column.nullable:
                raise InvalidDataError(
                    f"{self.source}: {column.name} is null in a record, but the schema of the "
                    f"query says that {column.asked} never is. Leave schema() out, or let it be "
                    "nullable there."
                )
            fields.append(pa.field(column.asked, array.type, column.nullable))
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _texts(self, name: str, rows: NDArray[np.int64], first: int) -> pa.Array:
        if name == "fileName":
            return pa.array([self.source] * len(rows), pa.string())
        if name in ("uid", "metadata"):
            known = self.batch.uids if name == "uid" else self.batch.metadata
            texts = [None if r < 0 else known[r] for r in rows.tolist()]
            return pa.array(
                [None if t is None else t.decode("utf-8", "replace") for t in texts], pa.string()
            )
        return pa.array([self.reasons.get(first + i) for i in range(len(rows))], pa.string())


def _width_text(claimed: int, top: int, width: int) -> str:
    if claimed >= 0 and claimed != width and top <= width:
        return (
            f"it has {claimed} features, others have featureDim={width}. Set the option "
            "featureDim to the number that holds for all, or repair the file."
        )
    return f"feature {top - 1} is outside featureDim={width}. Set a larger featureDim."
