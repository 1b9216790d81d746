"""Params of the estimator and the model, and their defaults; driver only."""

from __future__ import annotations

from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasFeaturesCol,
    HasLabelCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasTol,
    HasValidationIndicatorCol,
    HasWeightCol,
)

P = TypeVar("P", bound="FMParamDeclarations")

BINARY, REGRESSOR = "binary_classifier", "regressor"

# Step sizes that suit each optimizer, when the caller sets none.
DEFAULT_LR = {"adagrad": 0.2, "sgd": 0.02, "adam": 0.005}

DEFAULTS: dict[str, Any] = {
    "featuresCol": "features",
    "labelCol": "label",
    "scoreCol": "score",
    "predictedLabelCol": "predicted_label",
    "predictionCol": "",
    "probabilityCol": "",
    "rawPredictionCol": "",
    "threshold": 0.5,
    "predictorType": BINARY,
    "numFactors": 16,
    "useBias": True,
    "useLinear": True,
    "optimizer": "adagrad",
    "epochs": 50,
    "shuffle": True,
    "adagradInit": 1.0,
    "miniBatchSize": 1,
    "biasWd": 0.0,
    "linearWd": 0.005,
    "factorsWd": 0.012,
    "decayFrequencyPower": 0.5,
    "eps": 1e-8,
    "averageEpochs": True,
    "sageMakerTraining": False,
    "standardizeLabel": True,
    "biasInitMethod": "constant",
    "biasInitScale": 0.01,
    "biasInitSigma": 0.01,
    "linearInitMethod": "constant",
    "linearInitScale": 0.01,
    "linearInitSigma": 0.01,
    "linearInitValue": 0.0,
    "factorsInitMethod": "normal",
    "factorsInitScale": 0.02,
    "factorsInitSigma": 0.02,
    "factorsInitValue": 0.01,
    "seed": 0,
    "numWorkers": 0,
    "averagingsPerEpoch": 0,
    "aggregationDepth": 0,
    "device": "cpu",
    "validationFraction": 0.1,
    "patience": 5,
    "tol": 1e-4,
    "refit": "auto",
    "handleInvalid": "error",
    "keepTrainingState": False,
    "checkpointDir": "",
    "checkpointInterval": 1,
}


def _float(name: str, doc: str) -> Param[float]:
    return Param(Params._dummy(), name, doc, TypeConverters.toFloat)


def _int(name: str, doc: str) -> Param[int]:
    return Param(Params._dummy(), name, doc, TypeConverters.toInt)


def _string(name: str, doc: str) -> Param[str]:
    return Param(Params._dummy(), name, doc, TypeConverters.toString)


def _boolean(name: str, doc: str) -> Param[bool]:
    return Param(Params._dummy(), name, doc, TypeConverters.toBoolean)


class FMParamDeclarations(
    HasFeaturesCol,
    HasLabelCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasWeightCol,
    HasValidationIndicatorCol,
    HasSeed,
    HasTol,
):
    """Params shared by estimator and model. Ranges are checked when fit begins."""

    predictionCol: Param[str] = _string(
        "predictionCol",
        'prediction column for pyspark.ml evaluators: predicted label or value ("" = not written)',
    )
    probabilityCol: Param[str] = _string(
        "probabilityCol",
        'column of the vector [P(0), P(1)], classifier only ("" = not written)',
    )
    rawPredictionCol: Param[str] = _string(
        "rawPredictionCol",
        'column of the vector [-margin, margin], classifier only ("" = not written)',
    )
    scoreCol: Param[str] = _string(
        "scoreCol", "score column: P(label = 1), or the predicted value of a regressor"
    )
    predictedLabelCol: Param[str] = _string(
        "predictedLabelCol",
        'predicted label column, 1.0 where score >= threshold; classifier only ("" = not written)',
    )
    threshold: Param[float] = _float(
        "threshold", "score from which the predicted label is 1 (0 to 1)"
    )
    predictorType: Param[str] = _string(
        "predictorType", '"binary_classifier" (labels 0 and 1) or "regressor"'
    )
    numFactors: Param[int] = _int("numFactors", "dimension of the factor vectors (1 to 16,384)")
    featureDim: Param[int] = _int(
        "featureDim",
        "length of the feature vectors (1 to 2^31 - 1); unset: the vectors' own size",
    )
    useBias: Param[bool] = _boolean("useBias", "whether the model has the bias w0")
    useLinear: Param[bool] = _boolean("useLinear", "whether the model has the linear weights w")
    optimizer: Param[str] = _string("optimizer", '"adagrad", "sgd" or "adam"')
    epochs: Param[int] = _int("epochs", "most passes over the training rows (>= 1)")
    shuffle: Param[bool] = _boolean("shuffle", "visit the rows in a new random order every epoch")
    adagradInit: Param[float] = _float(
        "adagradInit", "first value of AdaGrad's sums of squares (>= 0)"
    )
    miniBatchSize: Param[int] = _int(
        "miniBatchSize", "rows an update (>= 1); 1 updates after every row"
    )
    biasLr: Param[float] = _float("biasLr", "step size of the bias (>= 0); unset: by optimizer")
    linearLr: Param[float] = _float(
        "linearLr", "step size of the linear weights (>= 0); unset: by optimizer"
    )
    factorsLr: Param[float] = _float(
        "factorsLr", "step size of the factors (>= 0); unset: by optimizer"
    )
    biasWd: Param[float] = _float("biasWd", "L2 decay of the bias (>= 0)")
    linearWd: Param[float] = _float("linearWd", "L2 decay of the linear weights (>= 0)")
    factorsWd: Param[float] = _float("factorsWd", "L2 decay of the factors (>= 0)")
    decayFrequencyPower: Param[float] = _float(
        "decayFrequencyPower",
        "a feature with c training non-zeros decays (1000 / c)^power times as much an update "
        "(0 to 1); 0 treats all alike",
    )
    clipGradient: Param[float] = _float(
        "clipGradient", "bound on each gradient coordinate, decay included (> 0); unset: none"
    )
    eps: Param[float] = _float("eps", "added to the root in AdaGrad and Adam (>= 0)")
    rescaleGrad: Param[float] = _float(
        "rescaleGrad",
        "factor on a mini-batch's summed loss gradient (> 0); unset: one over its rows",
    )
    averageEpochs: Param[bool] = _boolean(
        "averageEpochs", "give the average of the models after each epoch, late ones weighing most"
    )
    sageMakerTraining: Param[bool] = _boolean(
        "sageMakerTraining",
        "treat rows as SageMaker's algorithm does: one worker; the last mini-batch is filled up "
        "with empty rows of label 0; zeros of dense vectors are entries; vectors have the length "
        "featureDim; features that no row has keep their first values",
    )
    standardizeLabel: Param[bool] = _boolean(
        "standardizeLabel",
        "train a regressor on labels divided by their standard deviation; scores stay in label "
        "units",
    )
    biasInitMethod: Param[str] = _string("biasInitMethod", '"normal", "uniform" or "constant"')
    biasInitScale: Param[float] = _float(
        "biasInitScale", "half width of the uniform first bias (>= 0)"
    )
    biasInitSigma: Param[float] = _float("biasInitSigma", "spread of the normal first bias (>= 0)")
    biasInitValue: Param[float] = _float(
        "biasInitValue",
        "constant first bias (any number); unset: the mean label, as log-odds for a classifier",
    )
    linearInitMethod: Param[str] = _string("linearInitMethod", '"normal", "uniform" or "constant"')
    linearInitScale: Param[float] = _float(
        "linearInitScale", "half width of uniform first linear weights (>= 0)"
    )
    linearInitSigma: Param[float] = _float(
        "linearInitSigma", "spread of normal first linear weights (>= 0)"
    )
    linearInitValue: Param[float] = _float(
        "linearInitValue", "constant first linear weight (any number)"
    )
    factorsInitMethod: Param[str] = _string(
        "factorsInitMethod", '"normal", "uniform" or "constant"'
    )
    factorsInitScale: Param[float] = _float(
        "factorsInitScale", "half width of uniform first factors (>= 0)"
    )
    factorsInitSigma: Param[float] = _float(
        "factorsInitSigma", "spread of normal first factors (>= 0)"
    )
    factorsInitValue: Param[float] = _float(
        "factorsInitValue", "constant first factor (any number)"
    )
    numWorkers: Param[int] = _int(
        "numWorkers", "partitions that train, each in a task of its own (>= 1); 0 chooses"
    )
    averagingsPerEpoch: Param[int] = _int(
        "averagingsPerEpoch", "times an epoch that partitions are averaged (>= 1); 0 chooses"
    )
    aggregationDepth: Param[int] = _int(
        "aggregationDepth", "1 averages on the driver, 2 on executors first; 0 chooses by size"
    )
    device: Param[str] = _string(
        "device",
        'what trains, and scores large batches: "cpu"; "gpu", which fit requires tasks to have; '
        '"auto" for a GPU where they have one',
    )
    validationFraction: Param[float] = _float(
        "validationFraction",
        "share of rows held out to choose the best epoch (0 to < 1), when there is no "
        "validationIndicatorCol; rows are chosen by their content",
    )
    validationMetric: Param[str] = _string(
        "validationMetric",
        'metric of the best epoch: "logloss", "accuracy", "f1", "roc_auc" or "pr_auc" of a '
        'classifier, "rmse", "mae" or "r2" of a regressor; unset: logloss or rmse',
    )
    patience: Param[int] = _int(
        "patience", "epochs without improvement before training stops (>= 0); 0 never stops"
    )
    tol: Param[float] = _float(
        "tol", "relative improvement of the validation metric that counts (>= 0)"
    )
    refit: Param[str] = _string(
        "refit",
        'train again on all rows, held-out ones included, for the best number of epochs: "auto" '
        '(up to a million rows), "always" or "never"',
    )
    handleInvalid: Param[str] = _string(
        "handleInvalid",
        'rows with null, NaN or out-of-range data: "error", "skip" (drop and count), or "keep" '
        "(null score in transform, the same as skip in fit)",
    )

    keepTrainingState: Param[bool] = _boolean(
        "keepTrainingState",
        "keep the state of the training with the model, so that a fit with warmStart=model goes on "
        "as if it had never stopped; the model is then not refit on all rows",
    )
    checkpointDir: Param[str] = _string(
        "checkpointDir",
        'folder in which fit writes down where it stands, and from which it goes on ("" = nowhere)',
    )
    checkpointInterval: Param[int] = _int(
        "checkpointInterval", "epochs from one checkpoint to the next (>= 1)"
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(**DEFAULTS)

    def _set(self: P, **kwargs: Any) -> P:
        """Set Params; None unsets one, where Spark would store a None that cannot be loaded."""
        for name, value in kwargs.items():
            if value is None:
                self.clear(self.getParam(name))
        return super()._set(**{n: v for n, v in kwargs.items() if v is not None})
