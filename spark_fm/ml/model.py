"""The fitted model: a Spark ML transformer, a SQL function, a predictor without Spark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from pyspark.ml.linalg import Vector
from pyspark.ml.util import MLReadable, MLWritable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.models.stages import no_model
from spark_fm.learner.losses import BINARY
from spark_fm.learner.spec import require
from spark_fm.learner.training import TrainingState
from spark_fm.learner.weights import FMWeights, Posterior
from spark_fm.ml.base import outputs
from spark_fm.ml.evaluation import EvaluateMethods
from spark_fm.ml.explain import ExplainMethods
from spark_fm.ml.html import card
from spark_fm.ml.interop import InteropMethods, MLlibMethods
from spark_fm.ml.persistence import FMModelReader, FMModelWriter
from spark_fm.ml.posterior import FMPosterior
from spark_fm.ml.recommend import RecommendMethods
from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.scoring.columns import (
    RESULT,
    FunctionTask,
    make_task,
    sql_function,
    with_structs,
)
from spark_fm.spark.resources import scoring_gpu
from spark_fm.spark.schema import check_outputs
from spark_fm.spark.session import SparkCluster, disable_columnar_udf_input, use_driver_interpreter


class FactorizationMachineModel(
    EvaluateMethods,
    ExplainMethods,
    RecommendMethods,
    MLlibMethods,
    InteropMethods,
    MLReadable["FactorizationMachineModel"],
    MLWritable,
):
    """A fitted factorization machine, as ``FactorizationMachine.fit`` returns it.

    Parameters
    ----------
    weights : FMWeights, optional
        The parameters. A model without them is empty and cannot score.
    summary : FMTrainingSummary, optional
    training_state : TrainingState, optional
        For a warm start that continues the training.
    origin : dict, optional
        Source of an imported model.
    posterior : Posterior, optional
        Draws of Gibbs sampling.
    """

    def __init__(
        self,
        weights: FMWeights | None = None,
        summary: FMTrainingSummary | None = None,
        training_state: TrainingState | None = None,
        origin: dict[str, Any] | None = None,
        posterior: Posterior | None = None,
    ) -> None:
        super().__init__()
        self._weights = weights
        self._summary = summary
        self._training_state = training_state
        self._origin = origin
        self._posterior = posterior

    @property
    def bias(self) -> float:
        """``w0``."""
        return self.weights.bias

    @property
    def linear(self) -> NDArray[np.float32]:
        """``w``, float32 of shape (n,); row j is feature ``features[j]``, or feature j."""
        return self.weights.linear

    @property
    def factors(self) -> NDArray[np.float32]:
        """``V``, float32 of shape (n, numFactors)."""
        return self.weights.factors

    @property
    def features(self) -> NDArray[np.int32] | None:
        """Sorted ids of the rows if only ids seen in training are kept, else None."""
        return self.weights.features

    @property
    def numFeatures(self) -> int:
        """Length of the feature vectors."""
        return self.weights.feature_dim

    @property
    def hasSummary(self) -> bool:
        """Whether the model has a ``summary``."""
        return self._summary is not None

    @property
    def summary(self) -> FMTrainingSummary | None:
        """Summary of the training; None for an imported model."""
        return None if self._summary is None else replace(self._summary, model=self)

    @property
    def trainingState(self) -> TrainingState | None:
        """State of the training of a model fitted with keepTrainingState; else None."""
        return self._training_state

    @property
    def posterior(self) -> FMPosterior | None:
        """Draws of the parameters, of a model fitted with keepPosterior; else None."""
        return None if self._posterior is None else FMPosterior(self, self._posterior)

    @overload
    def predict(self, X: Vector) -> float: ...

    @overload
    def predict(self, X: Any) -> NDArray[np.float32]: ...

    def predict(self, X: Any) -> NDArray[np.float32] | float:
        """Return predictions without Spark.

        Parameters
        ----------
        X : sparse matrix or array_like of shape (n_rows, n_features), or a Spark vector

        Returns
        -------
        ndarray of shape (n_rows,), float32, or float
            Of a matrix, the score of each row: P(label = 1), or the regressor's value. Of
            one vector, as in MLlib, the prediction: the label, or the regressor's value.

        Raises
        ------
        InvalidDataError
            For an array whose width is not the model's, an index outside the model's
            features, data that are not numbers, and, unless handleInvalid is "keep" or
            "skip", values that are not finite.
        """
        if isinstance(X, Vector):
            return self._predict_vector(X)
        scores = self.weights.predict(self._rows(X), self._loss)
        is_finite = np.isfinite(scores)
        if self.getHandleInvalid() != "error":
            scores[~is_finite] = np.nan
        elif not is_finite.all():
            row = int(np.argmin(is_finite))
            raise InvalidDataError(
                f"Row {row} of X has values so large that its score overflows. Scale them as the "
                'training rows were, or set handleInvalid to "keep" for NaN scores.'
            )
        return scores

    def _transform(self, dataset: DataFrame) -> DataFrame:
        reader = self._reader(dataset)
        columns = outputs(self)
        check_outputs(dataset, {param: output.name for param, output in columns.items()})
        session = dataset.sparkSession
        task = make_task(
            self._broadcast(session), loss=self._loss, features_col=reader.features_col,
            handle_invalid=reader.handle_invalid,
            gpu=scoring_gpu(self.getDevice(), SparkCluster.of(session)),
        )  # fmt: skip
        result, scored = with_structs(dataset, task, RESULT)
        if reader.handle_invalid == "skip":
            result = result.where(F.col(scored)["score"].isNotNull())
        added = [output.column(F.col(scored)) for output in columns.values()]
        return result.select("*", *added).drop(scored)

    def write(self) -> FMModelWriter:
        """Return a writer: ``model.write().overwrite().save(path)``."""
        return FMModelWriter(self)

    @classmethod
    def read(cls) -> FMModelReader:
        """Return a reader of models."""
        return FMModelReader(cls)

    def _repr_html_(self) -> str:
        """Show in a notebook how good the model is, what it is, and what to do with it."""
        if self._weights is None:
            return card("Empty model", "It has no parameters: fit or load one.", {}, advice={})
        summary = self._summary
        return card(
            f"Factorization machine, {self.getPredictorType().replace('_', ' ')}",
            "It was imported: model.evaluate(df) tells how good it is."
            if summary is None
            else summary.quality,
            {"features": self.numFeatures, "factors": self.weights.k},
            warnings=[] if summary is None else summary.warnings,
            advice={
                "model.transform(df)": "adds scores",
                "model.evaluate(df)": "measures it on rows with labels",
                "model.explain(df)": "takes scores apart",
                "model.save(path)": "then spark_fm.load(path) needs no Spark",
            },
        )

    def __repr__(self) -> str:
        """Show kind and size."""
        if self._weights is None:
            return "FactorizationMachineModel(empty)"
        return (
            f"FactorizationMachineModel(uid={self.uid}, {self.getPredictorType()}, "
            f"numFeatures={self.numFeatures}, numFactors={self.weights.k})"
        )


def register_udf(
    spark: SparkSession,
    name: str,
    model: FactorizationMachineModel,
    *,
    output: Literal["score", "predicted_label"] = "score",
) -> None:
    """Register a model as a SQL function: ``SELECT fm_score(features) FROM t``.

    Parameters
    ----------
    spark : SparkSession
        The function is temporary and belongs to this session.
    name : str
        Name of the function; one of the same name is replaced.
    model : FactorizationMachineModel
    output : {"score", "predicted_label"}
        What the function returns, as a double: P(label = 1) or a regressor's value, or, of
        a classifier, 1.0 where that is at least the model's threshold and 0.0 elsewhere.

    Raises
    ------
    InvalidParamError
        For another output, the label of a regressor, or an object that is no fitted model.
    SparkFMError
        For a model without parameters.

    Notes
    -----
    The function takes a vector, ``array<double>`` or ``array<float>`` column, and is
    deterministic. A row that cannot be scored is an error, or null when the model's
    ``handleInvalid`` is "keep" or "skip": a function drops no rows. Later changes of the
    model do not change the function.

    From Spark 4.2 on, where Python functions otherwise fail on vectors of a Parquet table,
    it sets ``spark.sql.execution.arrow.pythonUDF.columnarInput.enabled`` to false in this
    session.
    """
    if not isinstance(model, FactorizationMachineModel):
        raise InvalidParamError(no_model("model is", type(model).__name__))
    allowed = ("score", "predicted_label") if model.getPredictorType() == BINARY else ("score",)
    require(output in allowed, "output", output, " or ".join(f'"{each}"' for each in allowed))
    use_driver_interpreter(spark)
    disable_columnar_udf_input(spark)
    task = make_task(
        model._broadcast(spark), loss=model._loss, features_col=f"{name}(...)",
        handle_invalid="error" if model.getHandleInvalid() == "error" else "keep",
        gpu=scoring_gpu(model.getDevice(), SparkCluster.of(spark)),
    )  # fmt: skip
    threshold = model.getThreshold() if output == "predicted_label" else None
    spark.udf.register(name, sql_function(FunctionTask(task, threshold)))
