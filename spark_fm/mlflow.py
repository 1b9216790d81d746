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

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.formats.models.stages import no_model
from spark_fm.loaded import LoadedModel

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
            pip_requirements=pip_requirements or [f"spark-fm[mlflow]=={__version__}"],
        )


def _load_pyfunc(path: str) -> Scorer:
    """Return the object that ``mlflow.pyfunc.load_model`` wraps."""
    return Scorer(read_model(path))


class Scorer:
    """Scores tables and matrices with a saved model."""

    def __init__(self, model: SavedModel) -> None:
        self.model = model
        self._loaded = LoadedModel(model)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the score and the predicted label, under the names of ``transform``.

        Parameters
        ----------
        model_input : pandas DataFrame, sparse matrix or array_like
            As `LoadedModel.predict` takes it.
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
        scores = self._loaded.predict(model_input)
        columns = {self.model.params["scoreCol"]: scores.astype(np.float64)}
        labels = self._loaded.labels(scores)
        if labels is not None and self.model.params["predictedLabelCol"]:
            columns[self.model.params["predictedLabelCol"]] = labels.astype(np.float64)
        index = model_input.index if isinstance(model_input, pd.DataFrame) else None
        return pd.DataFrame(columns, index=index)
