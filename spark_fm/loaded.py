"""A saved model in this process alone: ``spark_fm.load``, without Spark or Java."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, overload

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.formats.vectors import VECTOR_TYPE, VectorColumn, read_vectors, rows_of
from spark_fm.learner.csr import CsrBatch, canonical
from spark_fm.learner.losses import LOSSES, Floats
from spark_fm.learner.predict import predicted_labels
from spark_fm.learner.weights import Posterior

__all__ = ["LoadedModel", "LoadedPosterior", "load"]


def load(path: str | os.PathLike[str]) -> LoadedModel:
    """Load a saved model to score rows in this process, without Spark or Java.

    Parameters
    ----------
    path : str or path
        A folder that ``model.save`` or ``spark-fm train`` wrote; local, or in a store, such as
        ``s3://bucket/fm.model``.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelFormatError
        For a folder that is not a model, is damaged or comes from a newer version.

    Examples
    --------
    >>> model = spark_fm.load("fm.model")  # doctest: +SKIP
    >>> model.predict([[1.0, 0.0, 0.0, 1.0]])  # doctest: +SKIP
    array([0.9876], dtype=float32)
    """
    return LoadedModel(read_model(os.fspath(path), whole=True))


class LoadedModel:
    """A model that ``spark_fm.load`` has read; it scores as the model that was saved.

    Parameters
    ----------
    saved : SavedModel
    """

    def __init__(self, saved: SavedModel) -> None:
        self._saved = saved

    @property
    def params(self) -> dict[str, Any]:
        """Every Param that is set or has a default, by name."""
        return dict(self._saved.params)

    @property
    def numFeatures(self) -> int:  # noqa: N802 - the name that the fitted model has
        """Length of the feature vectors."""
        return self._saved.weights.feature_dim

    @property
    def numFactors(self) -> int:  # noqa: N802
        """Dimension of the factor vectors."""
        return self._saved.weights.k

    @property
    def posterior(self) -> LoadedPosterior | None:
        """Draws of the parameters, of a model fitted with keepPosterior; else None."""
        posterior = self._saved.posterior
        return None if posterior is None else LoadedPosterior(self, posterior)

    def predict(self, X: Any) -> NDArray[np.float32]:
        """Return the score of each row: P(label = 1), or a regressor's value.

        Parameters
        ----------
        X : sparse matrix, array_like, pandas DataFrame, pyarrow Table or list of rows
            A matrix or array has shape (n_rows, n_features). A table has the model's
            ``featuresCol``, of Spark's vectors, lists, or dicts
            ``{"indices": [...], "values": [...]}``; or, of pandas, as many columns of numbers
            as the model has features, in their order. A row of a list is any of these cells,
            or a dict or one of Spark's rows that has ``featuresCol``.

        Returns
        -------
        ndarray of shape (n_rows,), float32
            In the rows' order. A row that cannot be scored is NaN, unless ``handleInvalid``
            is "error".

        Raises
        ------
        InvalidColumnError
            If the features are missing, or are not numbers.
        InvalidDataError
            For an array of another width; under ``handleInvalid="error"`` also for null, NaN
            and infinite values, and indices outside the model's features.
        """
        return self._predictions(X, self._saved.predict)

    def _predictions(self, X: Any, predict: Callable[[CsrBatch], NDArray[Any]]) -> NDArray[Any]:
        """Return what a function gives for rows, along its last axis; of bad rows NaN."""
        batch, is_bad = self._rows(X)
        n_features = self.numFeatures
        good = np.flatnonzero(~(is_bad | _rows_with_bad_entries(batch, n_features)))
        found = predict(canonical(batch.take(good)))
        scores = np.full((*found.shape[:-1], batch.n_rows), np.nan, found.dtype)
        scores[..., good] = found
        scores[~np.isfinite(scores)] = np.nan
        if self._saved.params["handleInvalid"] == "error" and np.isnan(scores).any():
            row = int(np.isnan(scores).reshape(-1, batch.n_rows).any(axis=0).argmax())
            raise InvalidDataError(
                f"Row {row} is null or broken, or a list of another "
                f"length than {n_features}, or holds a NaN or infinite value, one so large that "
                f"the score overflows, or an index outside 0 to {n_features - 1}, which the model "
                "cannot score. Clean the data, or save the model with handleInvalid='keep' for a "
                "NaN score."
            )
        return scores

    def _predict_by_draws(self, posterior: Posterior, X: Any) -> Iterable[Floats]:
        return self._predictions(
            X, lambda rows: np.stack(posterior.predict(rows, self._saved.loss))
        )

    def labels(self, scores: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return 1.0 for each score from the threshold on, else 0.0; None for a regressor.

        Parameters
        ----------
        scores : ndarray
            As ``predict`` returns them; NaN stays NaN.
        """
        if not LOSSES[self._saved.loss].is_classifier:
            return None
        labels = predicted_labels(scores, self._saved.params["threshold"])
        return np.where(np.isnan(scores), np.float32(np.nan), labels)

    def _rows(self, table: Any) -> tuple[CsrBatch, NDArray[np.bool_]]:
        """Return the rows and which of them are null or broken."""
        name, n_features = self._saved.params["featuresCol"], self.numFeatures
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(table, pandas.DataFrame):
            if name in table:
                return _of_cells(table[name].to_list(), f"featuresCol={name!r}", n_features)
            return _sound(_columns_of_numbers(table, name, n_features))
        if isinstance(table, pa.Table):
            if name not in table.column_names:
                raise InvalidColumnError(
                    f"The table has no column {name!r} but {table.column_names}. Rename the "
                    "column of the feature vectors, or select it."
                )
            column = table[name].combine_chunks()
            if pa.types.is_struct(column.type) or pa.types.is_list(column.type):
                return _of_vectors(_checked(column, f"featuresCol={name!r}"), n_features)
            return _of_cells(column.to_pylist(), f"featuresCol={name!r}", n_features)
        if isinstance(table, list | tuple):
            table = [_features_of(row, name) for row in table]
            if any(
                cell is None or isinstance(cell, dict) or hasattr(cell, "toArray") for cell in table
            ):
                return _of_cells(table, "X", n_features)
        rows = rows_of(table)
        if not sp.issparse(rows) and rows.shape[0] and rows.shape[1] != n_features:
            raise InvalidDataError(
                f"X has {rows.shape[1]} columns, the model has {n_features} features. "
                "Give each row all of them, or a SciPy sparse matrix with their indices."
            )
        return _sound(rows)

    def __repr__(self) -> str:
        """Show kind and size."""
        return (
            f"LoadedModel({self._saved.params['predictorType']}, numFeatures={self.numFeatures}, "
            f"numFactors={self.numFactors})"
        )


class _PredictsByDraws(Protocol):
    def _predict_by_draws(self, posterior: Posterior, X: Any) -> Iterable[Floats]:
        """Return the means and the standard deviations of the rows."""


class LoadedPosterior:
    """Draws from the posterior of a model's parameters, as ``model.posterior`` returns it.

    Parameters
    ----------
    model : LoadedModel or FactorizationMachineModel
    posterior : Posterior
    """

    def __init__(self, model: _PredictsByDraws, posterior: Posterior) -> None:
        self._model = model
        self._posterior = posterior

    def __len__(self) -> int:
        """Return the number of draws."""
        return len(self._posterior.members)

    def __repr__(self) -> str:
        """Show the number of draws."""
        return f"{type(self).__name__}({len(self)} draws of {self._model!r})"

    @property
    def noise(self) -> Floats:
        """Standard deviation of a label about its score, with each draw; 0 of a classifier."""
        return self._posterior.noise

    @overload
    def predict(self, X: Any, return_std: Literal[False] = False) -> Floats: ...

    @overload
    def predict(self, X: Any, return_std: Literal[True]) -> tuple[Floats, Floats]: ...

    def predict(self, X: Any, return_std: bool = False) -> Floats | tuple[Floats, Floats]:
        """Return the mean prediction of the draws, and its standard deviation.

        Parameters
        ----------
        X : sparse matrix, array_like, pandas DataFrame, pyarrow Table or list of rows
            What ``model.predict`` takes.
        return_std : bool, default False

        Returns
        -------
        mean : ndarray of shape (n_rows,), float64
            The regressor's value, or P(label = 1).
        std : ndarray of shape (n_rows,), float64
            With ``return_std``: of a regressor the standard deviation of the label, noise
            included, so that mean +- 1.645 std holds about 90 % of labels; of a classifier
            that of the probability between draws.

        Raises
        ------
        InvalidColumnError, InvalidDataError
            As ``model.predict`` does.

        Notes
        -----
        O(draws x non-zeros x numFactors): with 40 draws as much as the scores of 40 models.
        """
        mean, std = self._model._predict_by_draws(self._posterior, X)
        return (mean, std) if return_std else mean


def _sound(matrix: Any) -> tuple[CsrBatch, NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        batch = CsrBatch.from_matrix(matrix)
    return batch, np.zeros(batch.n_rows, np.bool_)


def _columns_of_numbers(table: Any, name: str, n_features: int) -> NDArray[np.float32]:
    """Return a DataFrame without featuresCol as a matrix."""
    try:
        matrix = np.asarray(table, np.float32)
    except (TypeError, ValueError) as err:
        raise InvalidColumnError(
            f"The input has no column {name!r}, and is no table of numbers: {err}. Pass "
            f"vectors as {name!r}, or {n_features} columns of numbers."
        ) from err
    if matrix.shape[1] != n_features:
        raise InvalidColumnError(
            f"The input has no column {name!r} and {matrix.shape[1]} column(s), but the "
            f"model has {n_features} features. Pass vectors as {name!r}, or one column "
            "for each feature."
        )
    return matrix


def _features_of(row: Any, name: str) -> Any:
    """Return the features of a row that names them, one of Spark's or a dict; else the row."""
    if isinstance(row, dict):
        return row.get(name, row)
    return row[name] if name in getattr(row, "__fields__", ()) else row


def _of_cells(cells: list[Any], what: str, n_features: int) -> tuple[CsrBatch, NDArray[np.bool_]]:
    """Return rows that are lists, dicts or Spark's vectors, and which are null or broken."""
    first = next((cell for cell in cells if cell is not None), None)
    if hasattr(first, "toArray"):
        cells = [None if cell is None else _dict_of(cell) for cell in cells]
        first = {}
    for row, cell in enumerate(cells):
        if isinstance(cell, dict) and not {"values"} <= set(cell) <= set(VECTOR_TYPE.names):
            raise InvalidColumnError(
                f"{what} has a dict of {', '.join(map(repr, cell)) or 'nothing'} in row {row}; "
                "expected 'indices' and 'values'."
            )
    kind = VECTOR_TYPE if isinstance(first, dict) else pa.list_(pa.float64())
    try:
        column = pa.array(cells, kind, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as err:
        raise InvalidColumnError(
            f"{what} holds neither lists of numbers nor dicts of 'indices' and 'values' alone: "
            f"{err}"
        ) from err
    return _of_vectors(_checked(column, what), n_features)


def _dict_of(vector: Any) -> dict[str, Any]:
    """Return one of Spark's vectors as ``VECTOR_TYPE`` has it."""
    if hasattr(vector, "indices"):
        return {"type": 0, "indices": vector.indices, "values": vector.values}
    return {"type": 1, "values": vector.values}


def _checked(column: pa.Array, what: str) -> VectorColumn:
    try:
        return read_vectors(column)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as err:
        raise InvalidColumnError(
            f"{what} holds neither lists of numbers nor dicts of 'indices' and 'values' alone: "
            f"{err}"
        ) from err


def _of_vectors(vectors: VectorColumn, n_features: int) -> tuple[CsrBatch, NDArray[np.bool_]]:
    """Return the rows of a column; a dense one of another length than the model's is broken."""
    with np.errstate(over="ignore"):
        values = vectors.values.astype(np.float32)
    batch = CsrBatch.from_arrays(vectors.indptr, vectors.indices, values)
    wrong_size = vectors.is_dense & (vectors.sizes != n_features)
    return batch, vectors.is_null | vectors.is_broken | wrong_size


def _rows_with_bad_entries(batch: CsrBatch, feature_dim: int) -> NDArray[np.bool_]:
    wrong = (batch.indices < 0) | (batch.indices >= feature_dim) | ~np.isfinite(batch.values)
    total = np.concatenate([[0], np.cumsum(wrong)])
    bad: NDArray[np.bool_] = total[batch.indptr[1:]] > total[batch.indptr[:-1]]
    return bad
