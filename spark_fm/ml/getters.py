"""Getters of the Params; driver only."""

from __future__ import annotations

from typing import Any

from pyspark.ml.param import Param

from spark_fm.learner.spec import Loss
from spark_fm.ml.params import BINARY, DEFAULT_LR, FMParamDeclarations


class FMParams(FMParamDeclarations):
    """The Params with their getters; what estimator and model build on."""

    @property
    def _loss(self) -> Loss:
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
