"""Feature vectors of an Arrow column as rows that a model can score; on executors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.vectors import read_vectors
from spark_fm.learner.csr import CsrBatch, canonical

HandleInvalid = Literal["error", "skip", "keep"]


@dataclass(frozen=True)
class FeatureReader:
    """Read vectors and sort out those that a model cannot score.

    Parameters
    ----------
    features_col : str
        The caller's name, for messages.
    handle_invalid : {"error", "skip", "keep"}
        Whether a row that cannot be scored is an error; otherwise it is flagged.
    """

    features_col: str
    handle_invalid: HandleInvalid

    def read(self, column: pa.Array, feature_dim: int) -> tuple[CsrBatch, NDArray[np.bool_]]:
        """Return the canonical good rows, and for each row of the column whether it is bad.

        Raises
        ------
        InvalidDataError
            For a bad row under "error": null, broken, dense but not as long as the model,
            with an index outside its range or a value that is not a finite float32.
        """
        vectors = read_vectors(column)
        with np.errstate(over="ignore"):
            values = vectors.values.astype(np.float32)
        bad = vectors.is_null | vectors.is_broken
        if bad.any():
            self._refuse("a null or broken vector", "")
        other = vectors.is_dense & (vectors.sizes != feature_dim)
        if other.any():
            seen = vectors.sizes[other][0]
            self._refuse(f"a dense vector or array of {seen} values, not {feature_dim}", "")
            bad = bad | other
        outside = (vectors.indices < 0) | (vectors.indices >= feature_dim)
        finite = np.isfinite(vectors.values)
        for flags, what, source in (
            (outside, f"an index outside 0 to {feature_dim - 1}", vectors.indices),
            (~finite, "a NaN or infinite value", vectors.values),
            (finite & ~np.isfinite(values), "a value beyond float32", vectors.values),
        ):
            if flags.any():
                first = int(np.flatnonzero(flags)[0])
                self._refuse(what, f" ({source[first]})")
                total = np.concatenate([[0], np.cumsum(flags)])
                bad = bad | (total[vectors.indptr[1:]] > total[vectors.indptr[:-1]])
        rows = CsrBatch.from_arrays(vectors.indptr, vectors.indices, values)
        if bad.any():
            rows = rows.take(np.flatnonzero(~bad))
        return canonical(rows), bad

    def _refuse(self, what: str, example: str) -> None:
        if self.handle_invalid == "error":
            raise InvalidDataError(
                f"featuresCol={self.features_col!r} holds {what}{example}, which the model cannot "
                "score. Clean the data, or set handleInvalid='keep' for a null score or 'skip' to "
                "drop such rows."
            )
