"""Setters of the estimator's Params; driver only."""

from __future__ import annotations

from typing import TypeVar

from spark_fm.ml.getters import FMParams

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
