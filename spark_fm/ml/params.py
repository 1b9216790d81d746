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

from spark_fm.learner.spec import LossName

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


class FMParams(FMParamDeclarations):
    """The Params with their getters; what estimator and model build on."""

    @property
    def _loss(self) -> LossName:
        return "logistic" if self.getPredictorType() == BINARY else "squared"

    def _optional(self, param: Param[Any]) -> Any:
        """Return a Param's value, None when it is unset, empty or None."""
        value = self.getOrDefault(param) if self.isDefined(param) else None
        return None if value == "" else value

    def _lr(self, param: Param[float]) -> float:
        value = self._optional(param)
        return float(DEFAULT_LR.get(self.getOptimizer(), 0.0) if value is None else value)

    def getScoreCol(self) -> str:
        """Return scoreCol."""
        return self.getOrDefault(self.scoreCol)

    def getPredictedLabelCol(self) -> str:
        """Return predictedLabelCol."""
        return self.getOrDefault(self.predictedLabelCol)

    def getThreshold(self) -> float:
        """Return threshold."""
        return self.getOrDefault(self.threshold)

    def getPredictorType(self) -> str:
        """Return predictorType."""
        return self.getOrDefault(self.predictorType)

    def getNumFactors(self) -> int:
        """Return numFactors."""
        return self.getOrDefault(self.numFactors)

    def getFeatureDim(self) -> int | None:
        """Return featureDim, or None when it is unset."""
        value: int | None = self._optional(self.featureDim)
        return value

    def getUseBias(self) -> bool:
        """Return useBias."""
        return self.getOrDefault(self.useBias)

    def getUseLinear(self) -> bool:
        """Return useLinear."""
        return self.getOrDefault(self.useLinear)

    def getOptimizer(self) -> str:
        """Return optimizer."""
        return self.getOrDefault(self.optimizer)

    def getEpochs(self) -> int:
        """Return epochs."""
        return self.getOrDefault(self.epochs)

    def getShuffle(self) -> bool:
        """Return shuffle."""
        return self.getOrDefault(self.shuffle)

    def getAdagradInit(self) -> float:
        """Return adagradInit."""
        return self.getOrDefault(self.adagradInit)

    def getMiniBatchSize(self) -> int:
        """Return miniBatchSize."""
        return self.getOrDefault(self.miniBatchSize)

    def getBiasLr(self) -> float:
        """Return biasLr, or the optimizer's own step size when it is unset."""
        return self._lr(self.biasLr)

    def getLinearLr(self) -> float:
        """Return linearLr, or the optimizer's own step size when it is unset."""
        return self._lr(self.linearLr)

    def getFactorsLr(self) -> float:
        """Return factorsLr, or the optimizer's own step size when it is unset."""
        return self._lr(self.factorsLr)

    def getBiasWd(self) -> float:
        """Return biasWd."""
        return self.getOrDefault(self.biasWd)

    def getLinearWd(self) -> float:
        """Return linearWd."""
        return self.getOrDefault(self.linearWd)

    def getFactorsWd(self) -> float:
        """Return factorsWd."""
        return self.getOrDefault(self.factorsWd)

    def getDecayFrequencyPower(self) -> float:
        """Return decayFrequencyPower."""
        return self.getOrDefault(self.decayFrequencyPower)

    def getClipGradient(self) -> float | None:
        """Return clipGradient, or None when it is unset."""
        value: float | None = self._optional(self.clipGradient)
        return value

    def getEps(self) -> float:
        """Return eps."""
        return self.getOrDefault(self.eps)

    def getRescaleGrad(self) -> float | None:
        """Return rescaleGrad, or None when it is unset."""
        value: float | None = self._optional(self.rescaleGrad)
        return value

    def getSageMakerTraining(self) -> bool:
        """Return sageMakerTraining."""
        return self.getOrDefault(self.sageMakerTraining)

    def getAverageEpochs(self) -> bool:
        """Return averageEpochs."""
        return self.getOrDefault(self.averageEpochs)

    def getStandardizeLabel(self) -> bool:
        """Return standardizeLabel."""
        return self.getOrDefault(self.standardizeLabel)

    def getBiasInitMethod(self) -> str:
        """Return biasInitMethod."""
        return self.getOrDefault(self.biasInitMethod)

    def getBiasInitScale(self) -> float:
        """Return biasInitScale."""
        return self.getOrDefault(self.biasInitScale)

    def getBiasInitSigma(self) -> float:
        """Return biasInitSigma."""
        return self.getOrDefault(self.biasInitSigma)

    def getBiasInitValue(self) -> float | None:
        """Return biasInitValue, or None when it is unset."""
        value: float | None = self._optional(self.biasInitValue)
        return value

    def getLinearInitMethod(self) -> str:
        """Return linearInitMethod."""
        return self.getOrDefault(self.linearInitMethod)

    def getLinearInitScale(self) -> float:
        """Return linearInitScale."""
        return self.getOrDefault(self.linearInitScale)

    def getLinearInitSigma(self) -> float:
        """Return linearInitSigma."""
        return self.getOrDefault(self.linearInitSigma)

    def getLinearInitValue(self) -> float:
        """Return linearInitValue."""
        return self.getOrDefault(self.linearInitValue)

    def getFactorsInitMethod(self) -> str:
        """Return factorsInitMethod."""
        return self.getOrDefault(self.factorsInitMethod)

    def getFactorsInitScale(self) -> float:
        """Return factorsInitScale."""
        return self.getOrDefault(self.factorsInitScale)

    def getFactorsInitSigma(self) -> float:
        """Return factorsInitSigma."""
        return self.getOrDefault(self.factorsInitSigma)

    def getFactorsInitValue(self) -> float:
        """Return factorsInitValue."""
        return self.getOrDefault(self.factorsInitValue)

    def getNumWorkers(self) -> int:
        """Return numWorkers."""
        return self.getOrDefault(self.numWorkers)

    def getAveragingsPerEpoch(self) -> int:
        """Return averagingsPerEpoch."""
        return self.getOrDefault(self.averagingsPerEpoch)

    def getAggregationDepth(self) -> int:
        """Return aggregationDepth."""
        return self.getOrDefault(self.aggregationDepth)

    def getDevice(self) -> str:
        """Return device."""
        return self.getOrDefault(self.device)

    def getValidationFraction(self) -> float:
        """Return validationFraction."""
        return self.getOrDefault(self.validationFraction)

    def getValidationMetric(self) -> str | None:
        """Return validationMetric, or None when it is unset."""
        value: str | None = self._optional(self.validationMetric)
        return value

    def getPatience(self) -> int:
        """Return patience."""
        return self.getOrDefault(self.patience)

    def getRefit(self) -> str:
        """Return refit."""
        return self.getOrDefault(self.refit)

    def getHandleInvalid(self) -> str:
        """Return handleInvalid."""
        return self.getOrDefault(self.handleInvalid)

    def getKeepTrainingState(self) -> bool:
        """Return keepTrainingState."""
        return self.getOrDefault(self.keepTrainingState)

    def getCheckpointDir(self) -> str:
        """Return checkpointDir."""
        return self.getOrDefault(self.checkpointDir)

    def getCheckpointInterval(self) -> int:
        """Return checkpointInterval."""
        return self.getOrDefault(self.checkpointInterval)


FM = TypeVar("FM", bound="FMSetters")


class FMSetters(FMParams):
    """A setter for each Param; each returns the estimator itself."""

    def setFeaturesCol(self: FM, value: str) -> FM:
        """Set featuresCol."""
        return self._set(featuresCol=value)

    def setLabelCol(self: FM, value: str) -> FM:
        """Set labelCol."""
        return self._set(labelCol=value)

    def setWeightCol(self: FM, value: str) -> FM:
        """Set weightCol."""
        return self._set(weightCol=value)

    def setValidationIndicatorCol(self: FM, value: str) -> FM:
        """Set validationIndicatorCol."""
        return self._set(validationIndicatorCol=value)

    def setPredictionCol(self: FM, value: str) -> FM:
        """Set predictionCol."""
        return self._set(predictionCol=value)

    def setProbabilityCol(self: FM, value: str) -> FM:
        """Set probabilityCol."""
        return self._set(probabilityCol=value)

    def setRawPredictionCol(self: FM, value: str) -> FM:
        """Set rawPredictionCol."""
        return self._set(rawPredictionCol=value)

    def setScoreCol(self: FM, value: str) -> FM:
        """Set scoreCol."""
        return self._set(scoreCol=value)

    def setPredictedLabelCol(self: FM, value: str) -> FM:
        """Set predictedLabelCol."""
        return self._set(predictedLabelCol=value)

    def setThreshold(self: FM, value: float) -> FM:
        """Set threshold."""
        return self._set(threshold=value)

    def setPredictorType(self: FM, value: str) -> FM:
        """Set predictorType."""
        return self._set(predictorType=value)

    def setNumFactors(self: FM, value: int) -> FM:
        """Set numFactors."""
        return self._set(numFactors=value)

    def setFeatureDim(self: FM, value: int) -> FM:
        """Set featureDim."""
        return self._set(featureDim=value)

    def setUseBias(self: FM, value: bool) -> FM:
        """Set useBias."""
        return self._set(useBias=value)

    def setUseLinear(self: FM, value: bool) -> FM:
        """Set useLinear."""
        return self._set(useLinear=value)

    def setOptimizer(self: FM, value: str) -> FM:
        """Set optimizer."""
        return self._set(optimizer=value)

    def setEpochs(self: FM, value: int) -> FM:
        """Set epochs."""
        return self._set(epochs=value)

    def setShuffle(self: FM, value: bool) -> FM:
        """Set shuffle."""
        return self._set(shuffle=value)

    def setAdagradInit(self: FM, value: float) -> FM:
        """Set adagradInit."""
        return self._set(adagradInit=value)

    def setMiniBatchSize(self: FM, value: int) -> FM:
        """Set miniBatchSize."""
        return self._set(miniBatchSize=value)

    def setBiasLr(self: FM, value: float) -> FM:
        """Set biasLr."""
        return self._set(biasLr=value)

    def setLinearLr(self: FM, value: float) -> FM:
        """Set linearLr."""
        return self._set(linearLr=value)

    def setFactorsLr(self: FM, value: float) -> FM:
        """Set factorsLr."""
        return self._set(factorsLr=value)

    def setBiasWd(self: FM, value: float) -> FM:
        """Set biasWd."""
        return self._set(biasWd=value)

    def setLinearWd(self: FM, value: float) -> FM:
        """Set linearWd."""
        return self._set(linearWd=value)

    def setFactorsWd(self: FM, value: float) -> FM:
        """Set factorsWd."""
        return self._set(factorsWd=value)

    def setDecayFrequencyPower(self: FM, value: float) -> FM:
        """Set decayFrequencyPower."""
        return self._set(decayFrequencyPower=value)

    def setClipGradient(self: FM, value: float) -> FM:
        """Set clipGradient."""
        return self._set(clipGradient=value)

    def setEps(self: FM, value: float) -> FM:
        """Set eps."""
        return self._set(eps=value)

    def setRescaleGrad(self: FM, value: float) -> FM:
        """Set rescaleGrad."""
        return self._set(rescaleGrad=value)

    def setSageMakerTraining(self: FM, value: bool) -> FM:
        """Set sageMakerTraining."""
        return self._set(sageMakerTraining=value)

    def setAverageEpochs(self: FM, value: bool) -> FM:
        """Set averageEpochs."""
        return self._set(averageEpochs=value)

    def setStandardizeLabel(self: FM, value: bool) -> FM:
        """Set standardizeLabel."""
        return self._set(standardizeLabel=value)

    def setBiasInitMethod(self: FM, value: str) -> FM:
        """Set biasInitMethod."""
        return self._set(biasInitMethod=value)

    def setBiasInitScale(self: FM, value: float) -> FM:
        """Set biasInitScale."""
        return self._set(biasInitScale=value)

    def setBiasInitSigma(self: FM, value: float) -> FM:
        """Set biasInitSigma."""
        return self._set(biasInitSigma=value)

    def setBiasInitValue(self: FM, value: float) -> FM:
        """Set biasInitValue."""
        return self._set(biasInitValue=value)

    def setLinearInitMethod(self: FM, value: str) -> FM:
        """Set linearInitMethod."""
        return self._set(linearInitMethod=value)

    def setLinearInitScale(self: FM, value: float) -> FM:
        """Set linearInitScale."""
        return self._set(linearInitScale=value)

    def setLinearInitSigma(self: FM, value: float) -> FM:
        """Set linearInitSigma."""
        return self._set(linearInitSigma=value)

    def setLinearInitValue(self: FM, value: float) -> FM:
        """Set linearInitValue."""
        return self._set(linearInitValue=value)

    def setFactorsInitMethod(self: FM, value: str) -> FM:
        """Set factorsInitMethod."""
        return self._set(factorsInitMethod=value)

    def setFactorsInitScale(self: FM, value: float) -> FM:
        """Set factorsInitScale."""
        return self._set(factorsInitScale=value)

    def setFactorsInitSigma(self: FM, value: float) -> FM:
        """Set factorsInitSigma."""
        return self._set(factorsInitSigma=value)

    def setFactorsInitValue(self: FM, value: float) -> FM:
        """Set factorsInitValue."""
        return self._set(factorsInitValue=value)

    def setNumWorkers(self: FM, value: int) -> FM:
        """Set numWorkers."""
        return self._set(numWorkers=value)

    def setAveragingsPerEpoch(self: FM, value: int) -> FM:
        """Set averagingsPerEpoch."""
        return self._set(averagingsPerEpoch=value)

    def setAggregationDepth(self: FM, value: int) -> FM:
        """Set aggregationDepth."""
        return self._set(aggregationDepth=value)

    def setDevice(self: FM, value: str) -> FM:
        """Set device."""
        return self._set(device=value)

    def setValidationFraction(self: FM, value: float) -> FM:
        """Set validationFraction."""
        return self._set(validationFraction=value)

    def setValidationMetric(self: FM, value: str) -> FM:
        """Set validationMetric."""
        return self._set(validationMetric=value)

    def setPatience(self: FM, value: int) -> FM:
        """Set patience."""
        return self._set(patience=value)

    def setRefit(self: FM, value: str) -> FM:
        """Set refit."""
        return self._set(refit=value)

    def setHandleInvalid(self: FM, value: str) -> FM:
        """Set handleInvalid."""
        return self._set(handleInvalid=value)

    def setSeed(self: FM, value: int) -> FM:
        """Set seed."""
        return self._set(seed=value)

    def setTol(self: FM, value: float) -> FM:
        """Set tol."""
        return self._set(tol=value)

    def setKeepTrainingState(self: FM, value: bool) -> FM:
        """Set keepTrainingState."""
        return self._set(keepTrainingState=value)

    def setCheckpointDir(self: FM, value: str) -> FM:
        """Set checkpointDir."""
        return self._set(checkpointDir=value)

    def setCheckpointInterval(self: FM, value: int) -> FM:
        """Set checkpointInterval."""
        return self._set(checkpointInterval=value)
