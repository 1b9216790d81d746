"""Models in MLflow: logged from a Spark program, loaded as pyfunc without Spark or Java.

``fit`` logs its epochs to the active MLflow run. This module needs
``pip install 'spark-fm[mlflow]'``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.formats.models.stages import no_model
from spark_fm.formats.vectors import VECTOR_TYPE, read_vectors
from spark_fm.learner.csr import CsrBatch, canonical
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.predict import predicted_labels

if TYPE_CHECKING:
    from spark_fm.ml.model import FactorizationMachineModel

__all__ = ["log_model"]


def log_model(
    model: FactorizationMachineModel,
    name: str = "model",
    *,
    registered_model_name: str | None = None,
    pip_requirements: list[str] | None = None,
) -> Any:
    """Log a model to the active MLflow run, for ``mlflow.pyfunc.load_model``.

    Parameters
    ----------
    model : FactorizationMachineModel
    name : str, default "model"
        Name of the model in the run.
    registered_model_name : str, optional
        Also register it as a version of this model.
    pip_requirements : list of str, optional
        Requirements for scoring; default this version of spark-fm.

    Returns
    -------
    mlflow.models.model.ModelInfo
        With the ``model_uri`` for ``load_model``.

    Raises
    ------
    InvalidParamError
        For an object that is no fitted model, before a run starts.
    SparkFMError
        For a model without parameters.
    ImportError
        Without MLflow.

    Notes
    -----
    The driver writes the files itself: no Spark job, and no storage shared with executors.
    ``FactorizationMachineModel.load`` also reads the folder ``model`` among the artifacts.
    A run starts if none is active.
    """
    try:
        import mlflow.pyfunc
    except ImportError as err:
        raise ImportError("Logging models needs MLflow: pip install 'spark-fm[mlflow]'.") from err
    from spark_fm.ml.model import FactorizationMachineModel
    from spark_fm.ml.persistence import write_local

    if not isinstance(model, FactorizationMachineModel):
        raise InvalidParamError(no_model("model is", type(model).__name__))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write_local(model, str(path))
        return mlflow.pyfunc.log_model(
            name=name,
            loader_module=__name__,
            data_path=str(path),
            registered_model_name=registered_model_name,
            pip_requirements=pip_requirements or [f"spark-fm=={__version__}"],
        )


def _load_pyfunc(path: str) -> Scorer:
    """Return the object that ``mlflow.pyfunc.load_model`` wraps."""
    return Scorer(read_model(path))


class Scorer:
    """Scores tables and matrices with a saved model."""

    def __init__(self, model: SavedModel) -> None:
        self.model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the columns that ``transform`` adds: the score and the predicted label.

        Parameters
        ----------
        model_input : pandas DataFrame, sparse matrix or array_like
            A DataFrame either has the model's ``featuresCol``, of lists or arrays, or of
            dicts ``{"indices": [...], "values": [...]}``; or as many columns of numbers as
            the model has features, in their order. A matrix has shape
            (n_rows, n_features).
        params : dict, optional
            Part of MLflow's interface; ignored.

        Returns
        -------
        pandas DataFrame
            One row per input row, with its index. A row that cannot be scored is NaN,
            unless ``handleInvalid`` is "error".

        Raises
        ------
        InvalidColumnError
            If the features are missing, or are not numbers.
        InvalidDataError
            For null, NaN and infinite values and indices outside the model's features,
            under ``handleInvalid="error"``.
        """
        saved_params, weights = self.model.params, self.model.weights
        index = model_input.index if isinstance(model_input, pd.DataFrame) else None
        batch, is_null = self._rows(model_input)
        bad = is_null | _rows_with_bad_entries(batch, weights.feature_dim)
        if bad.any() and saved_params["handleInvalid"] == "error":
            raise InvalidDataError(
                f"Row {int(bad.argmax())} is null or broken, or a list of another length than "
                f"{weights.feature_dim}, or holds a NaN or infinite value or an index outside 0 to "
                f"{weights.feature_dim - 1}, which the model cannot score. "
                "Clean the data, or save the model with handleInvalid='keep' for a NaN score."
            )
        scores = np.full(batch.n_rows, np.nan)
        scores[~bad] = self.model.predict(canonical(batch.take(np.flatnonzero(~bad))))
        columns = {saved_params["scoreCol"]: scores}
        if LOSSES[self.model.loss].is_classifier and saved_params["predictedLabelCol"]:
            labels = np.where(bad, np.nan, predicted_labels(scores, saved_params["threshold"]))
            columns[saved_params["predictedLabelCol"]] = labels
        return pd.DataFrame(columns, index=index)

    def _rows(self, table: Any) -> tuple[CsrBatch, NDArray[np.bool_]]:
        """Return the rows and which of them are null or broken."""
        name = self.model.params["featuresCol"]
        if isinstance(table, pd.DataFrame) and name in table:
            return _of_objects(table[name], name, self.model.weights.feature_dim)
        n_features = self.model.weights.feature_dim
        matrix = table
        if not sp.issparse(table):
            try:
                matrix = np.atleast_2d(np.asarray(table, np.float32))
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
        batch = CsrBatch.from_matrix(matrix)
        return batch, np.zeros(batch.n_rows, np.bool_)


def _of_objects(
    column: pd.Series[Any], name: str, n_features: int
) -> tuple[CsrBatch, NDArray[np.bool_]]:
    """Return the rows of a column of lists or of dicts, and which are null or broken.

    A list with a length other than the model's is broken.
    """
    present = column[column.notna()]
    is_sparse = len(present) > 0 and isinstance(present.iloc[0], dict)
    kind = VECTOR_TYPE if is_sparse else pa.list_(pa.float64())
    try:
        vectors = read_vectors(pa.array(column.astype(object), kind, from_pandas=True))
    except (pa.ArrowException, TypeError, ValueError) as err:
        raise InvalidColumnError(
            f"featuresCol={name!r} holds neither lists of numbers nor dicts of 'indices' and "
            f"'values' alone: {err}"
        ) from err
    values = vectors.values.astype(np.float32)
    batch = CsrBatch.from_arrays(vectors.indptr, vectors.indices, values)
    wrong_size = vectors.is_dense & (vectors.sizes != n_features)
    return batch, vectors.is_null | vectors.is_broken | wrong_size


def _rows_with_bad_entries(batch: CsrBatch, feature_dim: int) -> NDArray[np.bool_]:
    wrong = (batch.indices < 0) | (batch.indices >= feature_dim) | ~np.isfinite(batch.values)
    total = np.concatenate([[0], np.cumsum(wrong)])
    bad: NDArray[np.bool_] = total[batch.indptr[1:]] > total[batch.indptr[:-1]]
    return bad
