# Written by `make params` from the table in params.py.
from pyspark.ml.param import Param
from typing_extensions import Self

from spark_fm.ml.params import FMParamsBase, KeywordParams

class FMParams(FMParamsBase):
    predictionCol: Param[str]
    probabilityCol: Param[str]
    rawPredictionCol: Param[str]
    scoreCol: Param[str]
    predictedLabelCol: Param[str]
    threshold: Param[float]
    predictorType: Param[str]
    numFactors: Param[int]
    featureDim: Param[int]
    useBias: Param[bool]
    useLinear: Param[bool]
    solver: Param[str]
    optimizer: Param[str]
    epochs: Param[int]
    shuffle: Param[bool]
    adagradInit: Param[float]
    miniBatchSize: Param[int]
    biasLr: Param[float]
    linearLr: Param[float]
    factorsLr: Param[float]
    biasWd: Param[float]
    linearWd: Param[float]
    factorsWd: Param[float]
    decayFrequencyPower: Param[float]
    clipGradient: Param[float]
    eps: Param[float]
    rescaleGrad: Param[float]
    averageEpochs: Param[bool]
    sageMakerTraining: Param[bool]
    standardization: Param[bool]
    standardizeLabel: Param[bool]
    biasInitMethod: Param[str]
    biasInitScale: Param[float]
    biasInitSigma: Param[float]
    biasInitValue: Param[float]
    linearInitMethod: Param[str]
    linearInitScale: Param[float]
    linearInitSigma: Param[float]
    linearInitValue: Param[float]
    factorsInitMethod: Param[str]
    factorsInitScale: Param[float]
    factorsInitSigma: Param[float]
    factorsInitValue: Param[float]
    numWorkers: Param[int]
    averagingsPerEpoch: Param[int]
    aggregationDepth: Param[int]
    device: Param[str]
    validationFraction: Param[float]
    validationMetric: Param[str]
    patience: Param[int]
    refit: Param[str]
    handleInvalid: Param[str]
    keepTrainingState: Param[bool]
    keepPosterior: Param[bool]
    checkpointDir: Param[str]
    checkpointInterval: Param[int]
    tol: Param[float]
    def getScoreCol(self) -> str:
        """Return scoreCol: score column: P(label = 1), or the predicted value of a regressor."""
    def getPredictedLabelCol(self) -> str:
        """Return predictedLabelCol: predicted label column, 1.0 where score >= threshold; classifier only ("" = not written)."""
    def getThreshold(self) -> float:
        """Return threshold: smallest score for which the predicted label is 1 (0 to 1)."""
    def getPredictorType(self) -> str:
        """Return predictorType: "binary_classifier" (labels 0 and 1) or "regressor"."""
    def getNumFactors(self) -> int:
        """Return numFactors: dimension of the factor vectors (1 to 16,384)."""
    def getFeatureDim(self) -> int | None:
        """Return featureDim, or None when it is unset: length of the feature vectors (1 to 2^31 - 1); unset: the vectors' own size."""
    def getUseBias(self) -> bool:
        """Return useBias: whether the model has the bias w0."""
    def getUseLinear(self) -> bool:
        """Return useLinear: whether the model has the linear weights w."""
    def getSolver(self) -> str:
        """Return solver: "sgd" (stochastic gradients, by the optimizer); "gibbs" (the mean of a Bayesian posterior, by four chains of `epochs` sweeps, unset 50 to 200; for ratings and other sparse data of few columns); "auto" trains both on small data and keeps what does better on held-out rows, or SGD where a Param that it alone has, or epochs, is set."""
    def getOptimizer(self) -> str:
        """Return optimizer: "adagrad", "sgd" or "adam"."""
    def getEpochs(self) -> int:
        """Return epochs: maximum number of passes over the training rows (>= 1)."""
    def getShuffle(self) -> bool:
        """Return shuffle: take the rows in a new random order every epoch."""
    def getAdagradInit(self) -> float:
        """Return adagradInit: initial value of AdaGrad's sums of squares (>= 0)."""
    def getMiniBatchSize(self) -> int:
        """Return miniBatchSize: rows per update (>= 1); 1 updates after every row."""
    def getBiasLr(self) -> float:
        """Return biasLr, or the optimizer's default when it is unset: learning rate of the bias (>= 0); unset: chosen on held-out rows."""
    def getLinearLr(self) -> float:
        """Return linearLr, or the optimizer's default when it is unset: learning rate of the linear weights (>= 0); unset: chosen on held-out rows."""
    def getFactorsLr(self) -> float:
        """Return factorsLr, or the optimizer's default when it is unset: learning rate of the factors (>= 0); unset: chosen on held-out rows."""
    def getBiasWd(self) -> float:
        """Return biasWd: L2 weight decay of the bias (>= 0)."""
    def getLinearWd(self) -> float:
        """Return linearWd: L2 weight decay of the linear weights (>= 0)."""
    def getFactorsWd(self) -> float:
        """Return factorsWd: L2 weight decay of the factors (>= 0)."""
    def getDecayFrequencyPower(self) -> float:
        """Return decayFrequencyPower: the weight decay of a feature with c training non-zeros is multiplied by (1000 / c)^power per update (0 to 1); 0 treats all alike."""
    def getClipGradient(self) -> float | None:
        """Return clipGradient, or None when it is unset: bound on each gradient coordinate, weight decay included (> 0); unset: none."""
    def getEps(self) -> float:
        """Return eps: added to the square root in AdaGrad and Adam (>= 0)."""
    def getRescaleGrad(self) -> float | None:
        """Return rescaleGrad, or None when it is unset: factor on a mini-batch's summed loss gradient (> 0); unset: one over its rows."""
    def getAverageEpochs(self) -> bool:
        """Return averageEpochs: return the average of the models after each epoch, late ones weighing most."""
    def getSageMakerTraining(self) -> bool:
        """Return sageMakerTraining: treat rows as SageMaker's algorithm does: one worker; the last mini-batch is filled up with empty rows of label 0; zeros of dense vectors are entries; vectors have the length featureDim; features that no row has keep their initial values."""
    def getStandardization(self) -> bool:
        """Return standardization: train on features divided by their standard deviation, and centred where most rows have them; one-hot features stay as they are, and the model is in feature units; not with sageMakerTraining."""
    def getStandardizeLabel(self) -> bool:
        """Return standardizeLabel: train a regressor on labels less their mean and divided by their standard deviation; scores and biasInitValue are in label units."""
    def getBiasInitMethod(self) -> str:
        """Return biasInitMethod: "normal", "uniform" or "constant"."""
    def getBiasInitScale(self) -> float:
        """Return biasInitScale: half width of the uniform initial bias (>= 0)."""
    def getBiasInitSigma(self) -> float:
        """Return biasInitSigma: standard deviation of the normal initial bias (>= 0)."""
    def getBiasInitValue(self) -> float | None:
        """Return biasInitValue, or None when it is unset: constant initial bias (any number); unset: the mean label, as log-odds for a classifier."""
    def getLinearInitMethod(self) -> str:
        """Return linearInitMethod: "normal", "uniform" or "constant"."""
    def getLinearInitScale(self) -> float:
        """Return linearInitScale: half width of the uniform initial linear weights (>= 0)."""
    def getLinearInitSigma(self) -> float:
        """Return linearInitSigma: standard deviation of the normal initial linear weights (>= 0)."""
    def getLinearInitValue(self) -> float:
        """Return linearInitValue: constant initial linear weight (any number)."""
    def getFactorsInitMethod(self) -> str:
        """Return factorsInitMethod: "normal", "uniform" or "constant"."""
    def getFactorsInitScale(self) -> float:
        """Return factorsInitScale: half width of the uniform initial factors (>= 0)."""
    def getFactorsInitSigma(self) -> float:
        """Return factorsInitSigma: standard deviation of the normal initial factors (>= 0)."""
    def getFactorsInitValue(self) -> float:
        """Return factorsInitValue: constant initial factor (any number)."""
    def getNumWorkers(self) -> int:
        """Return numWorkers: partitions that train, one task each (>= 1); 0 chooses."""
    def getAveragingsPerEpoch(self) -> int:
        """Return averagingsPerEpoch: how often per epoch the partitions' models are averaged (>= 1); 0 chooses."""
    def getAggregationDepth(self) -> int:
        """Return aggregationDepth: 1 averages on the driver, 2 on executors first; 0 chooses by size."""
    def getDevice(self) -> str:
        """Return device: what trains, and scores large batches: "cpu"; "gpu", which fit requires tasks to have; "auto" for a GPU where they have one."""
    def getValidationFraction(self) -> float:
        """Return validationFraction: fraction of the rows held out to choose the best epoch (0 to < 1), without a validationIndicatorCol; rows are chosen by their features, whatever the labels."""
    def getValidationMetric(self) -> str | None:
        """Return validationMetric, or None when it is unset: metric of the best epoch: "logloss", "accuracy", "f1", "roc_auc" or "pr_auc" of a classifier, "rmse", "mae" or "r2" of a regressor; unset: logloss or rmse."""
    def getPatience(self) -> int:
        """Return patience: epochs without improvement before training stops (>= 0); 0 never stops. A chain of Gibbs sampling stops by it only where it is set."""
    def getRefit(self) -> str:
        """Return refit: train again on all rows, held-out ones included, for the best number of epochs: "auto" (up to a million rows), "always" or "never"."""
    def getHandleInvalid(self) -> str:
        """Return handleInvalid: rows with null, NaN or out-of-range data: "error", "skip" (drop and count), or "keep" (null score in transform, the same as skip in fit)."""
    def getKeepTrainingState(self) -> bool:
        """Return keepTrainingState: keep the training state with the model, so that a fit with warmStart=model continues as if it had never stopped; the model is then not refit on all rows."""
    def getKeepPosterior(self) -> bool:
        """Return keepPosterior: keep 40 draws of the posterior with the model, for model.posterior: predictions with their standard deviation; trains by Gibbs sampling."""
    def getCheckpointDir(self) -> str:
        """Return checkpointDir: folder where fit writes checkpoints, and from which it resumes ("" = nowhere)."""
    def getCheckpointInterval(self) -> int:
        """Return checkpointInterval: epochs from one checkpoint to the next; of Gibbs sampling the fewest sweeps (>= 1)."""

class EstimatorParams(KeywordParams, FMParams):
    def __init__(
        self,
        *,
        featuresCol: str | None = None,
        labelCol: str | None = None,
        weightCol: str | None = None,
        validationIndicatorCol: str | None = None,
        predictionCol: str | None = None,
        probabilityCol: str | None = None,
        rawPredictionCol: str | None = None,
        scoreCol: str | None = None,
        predictedLabelCol: str | None = None,
        threshold: float | None = None,
        predictorType: str | None = None,
        numFactors: int | None = None,
        featureDim: int | None = None,
        useBias: bool | None = None,
        useLinear: bool | None = None,
        solver: str | None = None,
        optimizer: str | None = None,
        epochs: int | None = None,
        shuffle: bool | None = None,
        adagradInit: float | None = None,
        miniBatchSize: int | None = None,
        biasLr: float | None = None,
        linearLr: float | None = None,
        factorsLr: float | None = None,
        biasWd: float | None = None,
        linearWd: float | None = None,
        factorsWd: float | None = None,
        decayFrequencyPower: float | None = None,
        clipGradient: float | None = None,
        eps: float | None = None,
        rescaleGrad: float | None = None,
        averageEpochs: bool | None = None,
        sageMakerTraining: bool | None = None,
        standardization: bool | None = None,
        standardizeLabel: bool | None = None,
        biasInitMethod: str | None = None,
        biasInitScale: float | None = None,
        biasInitSigma: float | None = None,
        biasInitValue: float | None = None,
        linearInitMethod: str | None = None,
        linearInitScale: float | None = None,
        linearInitSigma: float | None = None,
        linearInitValue: float | None = None,
        factorsInitMethod: str | None = None,
        factorsInitScale: float | None = None,
        factorsInitSigma: float | None = None,
        factorsInitValue: float | None = None,
        numWorkers: int | None = None,
        averagingsPerEpoch: int | None = None,
        aggregationDepth: int | None = None,
        device: str | None = None,
        validationFraction: float | None = None,
        validationMetric: str | None = None,
        patience: int | None = None,
        refit: str | None = None,
        handleInvalid: str | None = None,
        keepTrainingState: bool | None = None,
        keepPosterior: bool | None = None,
        checkpointDir: str | None = None,
        checkpointInterval: int | None = None,
        seed: int | None = None,
        tol: float | None = None,
    ) -> None: ...
    def setParams(  # type: ignore[override]
        self,
        *,
        featuresCol: str | None = None,
        labelCol: str | None = None,
        weightCol: str | None = None,
        validationIndicatorCol: str | None = None,
        predictionCol: str | None = None,
        probabilityCol: str | None = None,
        rawPredictionCol: str | None = None,
        scoreCol: str | None = None,
        predictedLabelCol: str | None = None,
        threshold: float | None = None,
        predictorType: str | None = None,
        numFactors: int | None = None,
        featureDim: int | None = None,
        useBias: bool | None = None,
        useLinear: bool | None = None,
        solver: str | None = None,
        optimizer: str | None = None,
        epochs: int | None = None,
        shuffle: bool | None = None,
        adagradInit: float | None = None,
        miniBatchSize: int | None = None,
        biasLr: float | None = None,
        linearLr: float | None = None,
        factorsLr: float | None = None,
        biasWd: float | None = None,
        linearWd: float | None = None,
        factorsWd: float | None = None,
        decayFrequencyPower: float | None = None,
        clipGradient: float | None = None,
        eps: float | None = None,
        rescaleGrad: float | None = None,
        averageEpochs: bool | None = None,
        sageMakerTraining: bool | None = None,
        standardization: bool | None = None,
        standardizeLabel: bool | None = None,
        biasInitMethod: str | None = None,
        biasInitScale: float | None = None,
        biasInitSigma: float | None = None,
        biasInitValue: float | None = None,
        linearInitMethod: str | None = None,
        linearInitScale: float | None = None,
        linearInitSigma: float | None = None,
        linearInitValue: float | None = None,
        factorsInitMethod: str | None = None,
        factorsInitScale: float | None = None,
        factorsInitSigma: float | None = None,
        factorsInitValue: float | None = None,
        numWorkers: int | None = None,
        averagingsPerEpoch: int | None = None,
        aggregationDepth: int | None = None,
        device: str | None = None,
        validationFraction: float | None = None,
        validationMetric: str | None = None,
        patience: int | None = None,
        refit: str | None = None,
        handleInvalid: str | None = None,
        keepTrainingState: bool | None = None,
        keepPosterior: bool | None = None,
        checkpointDir: str | None = None,
        checkpointInterval: int | None = None,
        seed: int | None = None,
        tol: float | None = None,
    ) -> Self: ...
    def setFeaturesCol(self, value: str) -> Self:
        """Set featuresCol."""
    def setLabelCol(self, value: str) -> Self:
        """Set labelCol."""
    def setWeightCol(self, value: str) -> Self:
        """Set weightCol."""
    def setValidationIndicatorCol(self, value: str) -> Self:
        """Set validationIndicatorCol."""
    def setPredictionCol(self, value: str) -> Self:
        """Set predictionCol: prediction column of pyspark.ml: predicted label or value ("" = not written)."""
    def setProbabilityCol(self, value: str) -> Self:
        """Set probabilityCol: column of the vector [P(0), P(1)], classifier only ("" = not written)."""
    def setRawPredictionCol(self, value: str) -> Self:
        """Set rawPredictionCol: column of the vector [-margin, margin], classifier only ("" = not written)."""
    def setScoreCol(self, value: str) -> Self:
        """Set scoreCol: score column: P(label = 1), or the predicted value of a regressor."""
    def setPredictedLabelCol(self, value: str) -> Self:
        """Set predictedLabelCol: predicted label column, 1.0 where score >= threshold; classifier only ("" = not written)."""
    def setThreshold(self, value: float) -> Self:
        """Set threshold: smallest score for which the predicted label is 1 (0 to 1)."""
    def setPredictorType(self, value: str) -> Self:
        """Set predictorType: "binary_classifier" (labels 0 and 1) or "regressor"."""
    def setNumFactors(self, value: int) -> Self:
        """Set numFactors: dimension of the factor vectors (1 to 16,384)."""
    def setFeatureDim(self, value: int) -> Self:
        """Set featureDim: length of the feature vectors (1 to 2^31 - 1); unset: the vectors' own size."""
    def setUseBias(self, value: bool) -> Self:
        """Set useBias: whether the model has the bias w0."""
    def setUseLinear(self, value: bool) -> Self:
        """Set useLinear: whether the model has the linear weights w."""
    def setSolver(self, value: str) -> Self:
        """Set solver: "sgd" (stochastic gradients, by the optimizer); "gibbs" (the mean of a Bayesian posterior, by four chains of `epochs` sweeps, unset 50 to 200; for ratings and other sparse data of few columns); "auto" trains both on small data and keeps what does better on held-out rows, or SGD where a Param that it alone has, or epochs, is set."""
    def setOptimizer(self, value: str) -> Self:
        """Set optimizer: "adagrad", "sgd" or "adam"."""
    def setEpochs(self, value: int) -> Self:
        """Set epochs: maximum number of passes over the training rows (>= 1)."""
    def setShuffle(self, value: bool) -> Self:
        """Set shuffle: take the rows in a new random order every epoch."""
    def setAdagradInit(self, value: float) -> Self:
        """Set adagradInit: initial value of AdaGrad's sums of squares (>= 0)."""
    def setMiniBatchSize(self, value: int) -> Self:
        """Set miniBatchSize: rows per update (>= 1); 1 updates after every row."""
    def setBiasLr(self, value: float) -> Self:
        """Set biasLr: learning rate of the bias (>= 0); unset: chosen on held-out rows."""
    def setLinearLr(self, value: float) -> Self:
        """Set linearLr: learning rate of the linear weights (>= 0); unset: chosen on held-out rows."""
    def setFactorsLr(self, value: float) -> Self:
        """Set factorsLr: learning rate of the factors (>= 0); unset: chosen on held-out rows."""
    def setBiasWd(self, value: float) -> Self:
        """Set biasWd: L2 weight decay of the bias (>= 0)."""
    def setLinearWd(self, value: float) -> Self:
        """Set linearWd: L2 weight decay of the linear weights (>= 0)."""
    def setFactorsWd(self, value: float) -> Self:
        """Set factorsWd: L2 weight decay of the factors (>= 0)."""
    def setDecayFrequencyPower(self, value: float) -> Self:
        """Set decayFrequencyPower: the weight decay of a feature with c training non-zeros is multiplied by (1000 / c)^power per update (0 to 1); 0 treats all alike."""
    def setClipGradient(self, value: float) -> Self:
        """Set clipGradient: bound on each gradient coordinate, weight decay included (> 0); unset: none."""
    def setEps(self, value: float) -> Self:
        """Set eps: added to the square root in AdaGrad and Adam (>= 0)."""
    def setRescaleGrad(self, value: float) -> Self:
        """Set rescaleGrad: factor on a mini-batch's summed loss gradient (> 0); unset: one over its rows."""
    def setAverageEpochs(self, value: bool) -> Self:
        """Set averageEpochs: return the average of the models after each epoch, late ones weighing most."""
    def setSageMakerTraining(self, value: bool) -> Self:
        """Set sageMakerTraining: treat rows as SageMaker's algorithm does: one worker; the last mini-batch is filled up with empty rows of label 0; zeros of dense vectors are entries; vectors have the length featureDim; features that no row has keep their initial values."""
    def setStandardization(self, value: bool) -> Self:
        """Set standardization: train on features divided by their standard deviation, and centred where most rows have them; one-hot features stay as they are, and the model is in feature units; not with sageMakerTraining."""
    def setStandardizeLabel(self, value: bool) -> Self:
        """Set standardizeLabel: train a regressor on labels less their mean and divided by their standard deviation; scores and biasInitValue are in label units."""
    def setBiasInitMethod(self, value: str) -> Self:
        """Set biasInitMethod: "normal", "uniform" or "constant"."""
    def setBiasInitScale(self, value: float) -> Self:
        """Set biasInitScale: half width of the uniform initial bias (>= 0)."""
    def setBiasInitSigma(self, value: float) -> Self:
        """Set biasInitSigma: standard deviation of the normal initial bias (>= 0)."""
    def setBiasInitValue(self, value: float) -> Self:
        """Set biasInitValue: constant initial bias (any number); unset: the mean label, as log-odds for a classifier."""
    def setLinearInitMethod(self, value: str) -> Self:
        """Set linearInitMethod: "normal", "uniform" or "constant"."""
    def setLinearInitScale(self, value: float) -> Self:
        """Set linearInitScale: half width of the uniform initial linear weights (>= 0)."""
    def setLinearInitSigma(self, value: float) -> Self:
        """Set linearInitSigma: standard deviation of the normal initial linear weights (>= 0)."""
    def setLinearInitValue(self, value: float) -> Self:
        """Set linearInitValue: constant initial linear weight (any number)."""
    def setFactorsInitMethod(self, value: str) -> Self:
        """Set factorsInitMethod: "normal", "uniform" or "constant"."""
    def setFactorsInitScale(self, value: float) -> Self:
        """Set factorsInitScale: half width of the uniform initial factors (>= 0)."""
    def setFactorsInitSigma(self, value: float) -> Self:
        """Set factorsInitSigma: standard deviation of the normal initial factors (>= 0)."""
    def setFactorsInitValue(self, value: float) -> Self:
        """Set factorsInitValue: constant initial factor (any number)."""
    def setNumWorkers(self, value: int) -> Self:
        """Set numWorkers: partitions that train, one task each (>= 1); 0 chooses."""
    def setAveragingsPerEpoch(self, value: int) -> Self:
        """Set averagingsPerEpoch: how often per epoch the partitions' models are averaged (>= 1); 0 chooses."""
    def setAggregationDepth(self, value: int) -> Self:
        """Set aggregationDepth: 1 averages on the driver, 2 on executors first; 0 chooses by size."""
    def setDevice(self, value: str) -> Self:
        """Set device: what trains, and scores large batches: "cpu"; "gpu", which fit requires tasks to have; "auto" for a GPU where they have one."""
    def setValidationFraction(self, value: float) -> Self:
        """Set validationFraction: fraction of the rows held out to choose the best epoch (0 to < 1), without a validationIndicatorCol; rows are chosen by their features, whatever the labels."""
    def setValidationMetric(self, value: str) -> Self:
        """Set validationMetric: metric of the best epoch: "logloss", "accuracy", "f1", "roc_auc" or "pr_auc" of a classifier, "rmse", "mae" or "r2" of a regressor; unset: logloss or rmse."""
    def setPatience(self, value: int) -> Self:
        """Set patience: epochs without improvement before training stops (>= 0); 0 never stops. A chain of Gibbs sampling stops by it only where it is set."""
    def setRefit(self, value: str) -> Self:
        """Set refit: train again on all rows, held-out ones included, for the best number of epochs: "auto" (up to a million rows), "always" or "never"."""
    def setHandleInvalid(self, value: str) -> Self:
        """Set handleInvalid: rows with null, NaN or out-of-range data: "error", "skip" (drop and count), or "keep" (null score in transform, the same as skip in fit)."""
    def setKeepTrainingState(self, value: bool) -> Self:
        """Set keepTrainingState: keep the training state with the model, so that a fit with warmStart=model continues as if it had never stopped; the model is then not refit on all rows."""
    def setKeepPosterior(self, value: bool) -> Self:
        """Set keepPosterior: keep 40 draws of the posterior with the model, for model.posterior: predictions with their standard deviation; trains by Gibbs sampling."""
    def setCheckpointDir(self, value: str) -> Self:
        """Set checkpointDir: folder where fit writes checkpoints, and from which it resumes ("" = nowhere)."""
    def setCheckpointInterval(self, value: int) -> Self:
        """Set checkpointInterval: epochs from one checkpoint to the next; of Gibbs sampling the fewest sweeps (>= 1)."""
    def setSeed(self, value: int) -> Self:
        """Set seed."""
    def setTol(self, value: float) -> Self:
        """Set tol: relative improvement of the validation metric that counts (>= 0)."""

class ModelParams(FMParams):
    def setFeaturesCol(self, value: str) -> Self:
        """Set featuresCol."""
    def setPredictionCol(self, value: str) -> Self:
        """Set predictionCol: prediction column of pyspark.ml: predicted label or value ("" = not written)."""
    def setProbabilityCol(self, value: str) -> Self:
        """Set probabilityCol: column of the vector [P(0), P(1)], classifier only ("" = not written)."""
    def setRawPredictionCol(self, value: str) -> Self:
        """Set rawPredictionCol: column of the vector [-margin, margin], classifier only ("" = not written)."""
    def setScoreCol(self, value: str) -> Self:
        """Set scoreCol: score column: P(label = 1), or the predicted value of a regressor."""
    def setPredictedLabelCol(self, value: str) -> Self:
        """Set predictedLabelCol: predicted label column, 1.0 where score >= threshold; classifier only ("" = not written)."""
    def setThreshold(self, value: float) -> Self:
        """Set threshold: smallest score for which the predicted label is 1 (0 to 1)."""
    def setDevice(self, value: str) -> Self:
        """Set device: what trains, and scores large batches: "cpu"; "gpu", which fit requires tasks to have; "auto" for a GPU where they have one."""
    def setHandleInvalid(self, value: str) -> Self:
        """Set handleInvalid: rows with null, NaN or out-of-range data: "error", "skip" (drop and count), or "keep" (null score in transform, the same as skip in fit)."""
