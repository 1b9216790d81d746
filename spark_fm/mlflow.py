"""Models in MLflow: logged from a Spark program, loaded as pyfunc without Spark or Java.

``fit`` logs its epochs to the active MLflow run, ``tune`` its trials, and ``autolog`` all that
belongs to a run. This module needs ``pip install 'spark-fm[mlflow]'``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.formats.models.stages import no_model
from spark_fm.learner.losses import BINARY
from spark_fm.loaded import LoadedModel

if TYPE_CHECKING:
    from spark_fm.ml.model import FactorizationMachineModel

__all__ = ["autolog", "log_model"]


def autolog(
    *,
    log_models: bool = False,
    registered_model_name: str | None = None,
    extra_tags: Mapping[str, str] | None = None,
    disable: bool = False,
) -> None:
    """Log every later ``fit`` and ``tune`` to MLflow, in the active run or one of its own.

    The Params that are set, the metrics of each epoch and then, as the latest values, those of the
    best one, ``bestEpoch``, ``baseline`` (a constant's loss), ``linearLoss``, and the summary's
    plot. Each model of ``fit(df, [...])`` and each trial of ``tune`` is a nested run.

    Parameters
    ----------
    log_models : bool, default False
        Also log each model, as ``log_model`` does.
    registered_model_name : str, optional
        Log each model, and register it as a version of this one.
    extra_tags : dict of str to str, optional
        Tags of the runs that are made.
    disable : bool, default False
        Log no later training.

    Raises
    ------
    ImportError
        Without MLflow or PySpark.

    Notes
    -----
    A training never fails because MLflow does: a warning says what is missing in the run. The
    plot needs matplotlib. Of Spark's ``CrossValidator`` and ``TrainValidationSplit``, over a
    Pipeline too, only the last fit is logged and registered; of its ``OneVsRest`` none is.
    """
    _imported()
    from spark_fm.ml.tracking import Autologging, set_autologging

    if disable:
        set_autologging(None)
        return
    tags = {"mlflow.autologging": "spark_fm", **(extra_tags or {})}  # MLflow's own tag
    logs = log_models or registered_model_name is not None
    log = partial(log_model, registered_model_name=registered_model_name) if logs else None
    set_autologging(Autologging(log, tags))


def log_model(model: FactorizationMachineModel, name: str = "model", **options: Any) -> Any:
    """Log a model to the active MLflow run, for ``mlflow.pyfunc.load_model``.

    Parameters
    ----------
    model : FactorizationMachineModel
    name : str, default "model"
        Name of the model in the run.
    **options
        What else ``mlflow.pyfunc.log_model`` takes, such as ``registered_model_name``. Of these
        have other defaults here: ``input_example`` is a row of the model's ``featuresCol``, and
        may be a Spark DataFrame; ``signature`` names that column, or describes an example without
        it, such as a matrix, and the columns that are predicted;
        ``pip_requirements`` are this version of spark-fm and the MLflow that is installed, in
        front of ``extra_pip_requirements``.

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
    A run starts if none is active. Unity Catalog registers models with a signature only.
    """
    mlflow = _imported()
    from spark_fm.ml.model import FactorizationMachineModel
    from spark_fm.ml.persistence import write_local

    if not isinstance(model, FactorizationMachineModel):
        raise InvalidParamError(no_model("model is", type(model).__name__))
    if "artifact_path" not in options:  # MLflow's older word for the name
        options["name"] = name
    column = model.getFeaturesCol()
    example = options["input_example"] if "input_example" in options else _example(model)
    params = None
    if isinstance(example, tuple):  # MLflow's form of an example with params
        example, params = example
    example = _in_json(example, column)
    options["input_example"] = example if params is None else (example, params)
    if "signature" not in options:
        options["signature"] = _signature(model, example, params)
    if options.get("conda_env") is None and options.get("pip_requirements") is None:
        extra = options.pop("extra_pip_requirements", None) or []
        extra = [f"-r {extra}"] if isinstance(extra, str) else list(extra)
        options["pip_requirements"] = [*_requirements(mlflow), *extra]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write_local(model, str(path))
        return mlflow.pyfunc.log_model(loader_module=__name__, data_path=str(path), **options)


def _imported() -> Any:
    try:
        import mlflow.pyfunc
    except ImportError as err:
        raise ImportError("This needs MLflow: pip install 'spark-fm[mlflow]'.") from err
    return mlflow


def _requirements(mlflow: Any) -> list[str]:
    """Return what scoring needs; MLflow adds all of itself where its slim package is not named."""
    ours = f"spark-fm[mlflow]=={__version__}"
    try:
        version("mlflow")
    except PackageNotFoundError:
        return [ours, f"mlflow-skinny=={mlflow.__version__}"]
    return [ours]


def _signature(model: FactorizationMachineModel, example: Any, params: Any) -> Any:
    """Return the signature of a model that takes what the example and its params are."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    column = model.getFeaturesCol()
    if example is None or (isinstance(example, pd.DataFrame) and column in example):
        # Lists, dicts and Spark's vectors are rows alike, which no narrower type allows.
        inputs = Schema([ColSpec(AnyType(), column)])
    else:
        inputs = infer_signature(example).inputs
    names = [model.getScoreCol()]
    if model.getPredictorType() == BINARY and model.getPredictedLabelCol():
        names.append(model.getPredictedLabelCol())
    outputs = Schema([ColSpec(DataType.double, name) for name in names])
    accepted = {"params": infer_signature(params=params).params} if params else {}
    return ModelSignature(inputs, outputs, **accepted)


def _example(model: FactorizationMachineModel) -> pd.DataFrame:
    """Return a row of two features that the model knows."""
    known = model.weights.features
    ids = list(range(model.weights.feature_dim)[:2]) if known is None else known[:2].tolist()
    return pd.DataFrame({model.getFeaturesCol(): [{"indices": ids, "values": [1.0] * len(ids)}]})


def _in_json(example: Any, column: str) -> Any:
    """Return an example with the features alone, as JSON holds them, if it is a table of them."""
    if hasattr(example, "toPandas"):
        example = example.limit(_MOST_EXAMPLES).toPandas()
    if not isinstance(example, pd.DataFrame) or column not in example:
        return example

    def in_json(cell: Any) -> Any:
        if hasattr(cell, "indices"):
            return {"indices": cell.indices.tolist(), "values": cell.values.tolist()}
        return cell.toArray().tolist() if hasattr(cell, "toArray") else cell

    return pd.DataFrame({column: example[column].map(in_json)})


_MOST_EXAMPLES = 5


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
