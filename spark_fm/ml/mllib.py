"""What MLlib's factorization machines offer, in its names; driver only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyspark.ml.classification import FMClassificationModel
from pyspark.ml.linalg import DenseVector, SparseVector, Vector
from pyspark.ml.regression import FMRegressionModel

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import sigmoid
from spark_fm.learner.weights import FMWeights
from spark_fm.ml.fitted import FittedModel
from spark_fm.ml.params import BINARY, REGRESSOR

if TYPE_CHECKING:
    from spark_fm.ml.model import FactorizationMachineModel

# Params with the same meaning there and here, by MLlib's name.
SAME_PARAMS = {
    "featuresCol": "featuresCol",
    "labelCol": "labelCol",
    "predictionCol": "predictionCol",
    "probabilityCol": "probabilityCol",
    "rawPredictionCol": "rawPredictionCol",
    "factorSize": "numFactors",
    "fitIntercept": "useBias",
    "fitLinear": "useLinear",
    "seed": "seed",
}


class MLlibMethods(FittedModel):
    """Methods of MLlib's FMClassificationModel and FMRegressionModel."""

    @classmethod
    def from_mllib(
        cls, model: FMClassificationModel | FMRegressionModel
    ) -> FactorizationMachineModel:
        """Convert a model of Spark's own FMClassifier or FMRegressor.

        Parameters
        ----------
        model : FMClassificationModel or FMRegressionModel

        Returns
        -------
        FactorizationMachineModel
            With the same scores up to float32, writing the same columns, and ``score``
            and ``predicted_label`` beside them.

        Raises
        ------
        InvalidParamError
            For anything else than these two models.
        InvalidDataError
            For parameters that are not finite, as diverged trainings leave them.

        Notes
        -----
        The parameters come to the driver once: 8 bytes x numFeatures x (factorSize + 1).
        Thresholds (t0, t1) become ``threshold = t1 / (t0 + t1)``; where the probability is
        exactly that, the label is 1 here and 0 there.
        """
        check_convertible(model)
        converted = cls(weights_of(model))  # type: ignore[call-arg]  # the model's own
        kind = BINARY if isinstance(model, FMClassificationModel) else REGRESSOR
        converted._set(predictorType=kind)
        for theirs, ours in SAME_PARAMS.items():
            if model.hasParam(theirs) and model.isDefined(theirs):
                converted._set(**{ours: model.getOrDefault(theirs)})
        if isinstance(model, FMClassificationModel) and model.isSet(model.thresholds):
            low, high = model.getThresholds()
            converted._set(threshold=high / (low + high))
        return converted  # type: ignore[return-value]  # likewise

    @property
    def intercept(self) -> float:
        """``w0``, by MLlib's name; the same as ``bias``."""
        return float(self.weights.bias)

    @property
    def numClasses(self) -> int:
        """2; a regressor has none (AttributeError)."""
        self._classifier_only("numClasses")
        return 2

    def predictRaw(self, value: Vector) -> DenseVector:
        """Return the vector [-margin, margin] of one feature vector; classifier only."""
        self._classifier_only("predictRaw")
        margin = self._margin(value)
        return DenseVector([-margin, margin])

    def predictProbability(self, value: Vector) -> DenseVector:
        """Return the vector [P(0), P(1)] of one feature vector; classifier only."""
        self._classifier_only("predictProbability")
        score = self._score(value)
        return DenseVector([1.0 - score, score])

    def _predict_vector(self, value: Vector) -> float:
        """Return the predicted label or value of one feature vector."""
        score = self._score(value)
        if self.getPredictorType() == BINARY:
            return float(score >= self.getThreshold())
        return score

    def _score(self, value: Vector) -> float:
        margin = self._margin(value)
        return float(sigmoid(np.array(margin))) if self._loss == "logistic" else margin

    def _margin(self, value: Vector) -> float:
        n_features = self.weights.feature_dim
        if isinstance(value, DenseVector) and value.size != n_features:
            raise InvalidDataError(
                f"The dense vector has {value.size} values, the model {n_features} features. Give "
                "it all of them, or a sparse vector with their indices."
            )
        return float(self.weights.margins(batch_of(value))[0])

    def _classifier_only(self, name: str) -> None:
        if self.getPredictorType() != BINARY:
            raise AttributeError(f"a regressor has no {name}")


def batch_of(vector: Vector) -> CsrBatch:
    """Return the one row that a Spark vector holds."""
    if isinstance(vector, SparseVector):
        row = (vector.values, vector.indices, [0, len(vector.indices)])
        return CsrBatch.from_matrix(sp.csr_matrix(row, shape=(1, vector.size)))
    return CsrBatch.from_matrix(vector.toArray())


def check_convertible(model: object) -> None:
    """Raise InvalidParamError unless this is a factorization machine of MLlib."""
    if not isinstance(model, (FMClassificationModel, FMRegressionModel)):
        raise InvalidParamError(
            f"from_mllib got a {type(model).__name__}; expected FMClassificationModel or "
            "FMRegressionModel. Give it the fitted stage itself, such as "
            "pipelineModel.stages[-1]."
        )


def weights_of(model: FMClassificationModel | FMRegressionModel) -> FMWeights:
    """Return the parameters of MLlib's model as ours; O(numFeatures x factorSize)."""
    bias, linear = float(model.intercept), np.asarray(model.linear.toArray())
    # The matrix says itself whether it is column- or row-major.
    factors = np.asarray(model.factors.toArray())
    n_features, k = factors.shape
    table: NDArray[np.float32] = np.empty((n_features, k + 1), np.float32)
    with np.errstate(over="ignore"):
        table[:, :k] = factors
        table[:, k] = linear
    if not (np.isfinite(bias) and np.isfinite(table).all()):
        raise InvalidDataError(
            f"{model.uid} has parameters that are NaN, infinite or beyond float32: its training "
            "diverged. Train again with a smaller stepSize."
        )
    return FMWeights(bias, table, n_features)
