"""The estimator; driver only. Its module path is part of the on-disk format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyspark import keyword_only
from pyspark.ml import Estimator
from pyspark.ml.param import Param
from pyspark.ml.util import MLReadable, MLWritable
from pyspark.sql import DataFrame

from spark_fm.errors import InvalidParamError, TrainingDivergedError
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters
from spark_fm.learner.training import WarmStart
from spark_fm.ml.hyperparameters import FromHyperparameters
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.params import BINARY, REGRESSOR, FMSetters
from spark_fm.ml.persistence import FMStageReader, FMStageWriter
from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.spark.schema import (
    ColumnNames,
    check_batch_frame,
    check_training_columns,
    internal_rows,
    vector_size,
)
from spark_fm.training.callbacks import mlflow_callback
from spark_fm.training.config import TrainConfig
from spark_fm.training.dataset import packing_key
from spark_fm.training.trainer import TrainResult, open_trainer

if TYPE_CHECKING:
    from pyspark.ml._typing import ParamMap


class FactorizationMachine(
    Estimator[FactorizationMachineModel],
    FMSetters,
    FromHyperparameters,
    MLReadable["FactorizationMachine"],
    MLWritable,
):
    """Second-order factorization machine for binary classification and regression.

    ``score(x) = w0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j`` [1]_, trained by
    stochastic gradient steps on each partition with the models averaged in between.

    Every Param of ``explainParams()`` is a keyword argument and has a setter and a
    getter.

    Notes
    -----
    ``fit`` runs on Spark Classic and Spark Connect. The same seed and input partitions
    give the same model, bit for bit, whatever tasks were retried. Cost of an epoch:
    O(non-zeros x numFactors) arithmetic, and a round of the touched features'
    parameters as often as ``averagingsPerEpoch`` says when more than one partition
    trains.

    References
    ----------
    .. [1] S. Rendle, "Factorization Machines", ICDM 2010, eqs. (1) and (5),
       doi:10.1109/ICDM.2010.127.

    Examples
    --------
    >>> from pyspark.ml.linalg import Vectors
    >>> from spark_fm import FactorizationMachine
    >>> rows = [(float(a != b), Vectors.sparse(4, [a, 2 + b], [1.0, 1.0]))
    ...         for a in (0, 1) for b in (0, 1)] * 8
    >>> train = spark.createDataFrame(rows, ["label", "features"])
    >>> fm = FactorizationMachine(numFactors=2, epochs=60, validationFraction=0.0, seed=7,
    ...                           factorsInitSigma=0.5, factorsWd=0.0, linearWd=0.0)
    >>> model = fm.fit(train)
    >>> model.transform(train).where("predicted_label != label").count()
    0
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(  # noqa: PLR0913
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
        checkpointDir: str | None = None,
        checkpointInterval: int | None = None,
        seed: int | None = None,
        tol: float | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(  # noqa: PLR0913
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
        checkpointDir: str | None = None,
        checkpointInterval: int | None = None,
        seed: int | None = None,
        tol: float | None = None,
    ) -> FactorizationMachine:
        """Set the Params that are given."""
        return self._set(**self._input_kwargs)

    def fit(
        self,
        dataset: DataFrame,
        params: ParamMap | list[ParamMap] | tuple[ParamMap, ...] | None = None,
        *,
        warmStart: FactorizationMachineModel | str | None = None,
    ) -> Any:
        """Train a model, or one for each param map.

        Parameters
        ----------
        dataset : DataFrame
        params : dict or list of dict, optional
            Params for this fit only. A list trains all its models in shared passes over
            the rows (``fitMultiple``) and returns a list.
        warmStart : FactorizationMachineModel or str, optional
            Model, or path of a saved one, to go on from: with its parameters for the
            features it knows, and new ones for the rest. ``numFactors`` is the model's.
            When the model was trained with ``keepTrainingState`` on the same rows, the
            training goes on for ``epochs`` more, bit for bit as if it had not stopped;
            on other rows the optimizer's statistics are taken over.

        Returns
        -------
        FactorizationMachineModel, or a list of them

        Raises
        ------
        InvalidParamError, InvalidColumnError, InvalidDataError, ModelTooLargeError,
        TrainingDivergedError
        GpuNotFoundError
            With ``device="gpu"``, when tasks have none that works.
        CheckpointError
            When ``checkpointDir`` holds the checkpoint of another training.
        """
        if isinstance(params, (list, tuple)):
            fitted = dict(self._fit_multiple(dataset, params, warmStart))
            return [fitted[number] for number in range(len(params))]
        if isinstance(params, dict):
            check_param_maps(self, [params])
        if warmStart is None:
            return super().fit(dataset, params)
        return (self.copy(params) if params else self)._fit(dataset, warmStart)

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[ParamMap]
    ) -> Iterator[tuple[int, FactorizationMachineModel]]:
        """Train a model for each param map, in shared passes over the rows.

        Parameters
        ----------
        dataset : DataFrame
        paramMaps : sequence of dict
            Any Params. Maps that agree in the columns, featureDim, predictorType,
            handleInvalid, seed, shuffle, validationFraction and numWorkers share the
            packed rows; models of them that are cut up alike share the passes.

        Returns
        -------
        iterator of (int, FactorizationMachineModel)
            The number of the map and its model, which is the one that ``fit`` gives. Safe
            to use from several threads. The first call trains all.
        """
        return self._fit_multiple(dataset, paramMaps, None)

    def _fit_multiple(
        self,
        dataset: DataFrame,
        param_maps: Sequence[ParamMap],
        warm_start: FactorizationMachineModel | str | None,
    ) -> FittedModels:
        check_param_maps(self, param_maps)
        stages = [self.copy(param_map) for param_map in param_maps]
        return FittedModels(lambda: fit_all(stages, dataset, warm_start), len(stages))

    def _fit(
        self, dataset: DataFrame, warm_start: FactorizationMachineModel | str | None = None
    ) -> FactorizationMachineModel:
        [outcome] = fit_all([self], dataset, warm_start)
        if isinstance(outcome, TrainingDivergedError):
            raise outcome
        return outcome

    def _fitted(self, result: TrainResult) -> FactorizationMachineModel:
        summary = FMTrainingSummary(result.history, result.summary)
        model = FactorizationMachineModel(result.weights, summary, result.training_state)
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _request(self, dataset: DataFrame) -> TrainConfig:
        """Return the Params as a training takes them; raise for names out of range."""
        if self.getPredictorType() not in (BINARY, REGRESSOR):
            raise InvalidParamError(
                f"predictorType={self.getPredictorType()!r} is not allowed: expected "
                f'"{BINARY}" or "{REGRESSOR}".'
            )
        if not 0 <= self.getThreshold() <= 1:
            raise InvalidParamError(
                f"threshold={self.getThreshold()!r} is not allowed: expected 0 to 1."
            )
        spec = self._spec()
        columns = ColumnNames(
            features=self.getFeaturesCol(),
            label=self.getLabelCol(),
            weight=self._optional(self.weightCol),
            validation=self._optional(self.validationIndicatorCol),
        )
        feature_dim = self.getFeatureDim()
        if feature_dim is not None and feature_dim < 1:
            raise InvalidParamError(
                f"featureDim={feature_dim!r} is not allowed: expected 1 to 2,147,483,647, or leave "
                "it unset."
            )
        if feature_dim is None and columns.features in dataset.schema.names:
            feature_dim = vector_size(dataset.schema, columns.features)
        default_metric = "logloss" if spec.loss == "logistic" else "rmse"
        return TrainConfig(
            spec=spec,
            columns=columns,
            feature_dim=feature_dim or 0,
            num_workers=self.getNumWorkers(),
            averagings=self.getAveragingsPerEpoch(),
            aggregation_depth=self.getAggregationDepth(),
            validation_fraction=self.getValidationFraction(),
            metric=self.getValidationMetric() or default_metric,
            patience=self.getPatience(),
            tol=self.getTol(),
            refit=self.getRefit(),  # type: ignore[arg-type]  # checked by TrainConfig.check
            handle_invalid=self.getHandleInvalid(),  # type: ignore[arg-type]  # likewise
            standardize_label=self.getStandardizeLabel(),
            keep_snapshot=self.getKeepTrainingState(),
            checkpoint_dir=self.getCheckpointDir(),
            checkpoint_interval=self.getCheckpointInterval(),
            device=self.getDevice(),  # type: ignore[arg-type]  # likewise
        )

    def _spec(self) -> Hyperparameters:
        groups = {}
        for name in ("bias", "linear", "factors"):
            values = {
                key: self._optional(self.getParam(name + key))
                for key in ("InitMethod", "InitSigma", "InitScale", "InitValue", "Wd")
            }
            groups[name] = GroupHyperparameters(
                lr=self._lr(self.getParam(name + "Lr")),
                wd=values["Wd"],
                init_method=values["InitMethod"],
                init_sigma=values["InitSigma"],
                init_scale=values["InitScale"],
                init_value=values["InitValue"],
            )
        return Hyperparameters(
            k=self.getNumFactors(),
            loss=self._loss,
            optimizer=self.getOptimizer(),  # type: ignore[arg-type]  # checked by Hyperparameters.check
            epochs=self.getEpochs(),
            seed=self.getSeed(),
            shuffle=self.getShuffle(),
            use_bias=self.getUseBias(),
            use_linear=self.getUseLinear(),
            mini_batch_size=self.getMiniBatchSize(),
            adagrad_init=self.getAdagradInit(),
            decay_frequency_power=self.getDecayFrequencyPower(),
            clip_gradient=self._optional(self.clipGradient),
            eps=self.getEps(),
            rescale_grad=self._optional(self.rescaleGrad),
            average_epochs=self.getAverageEpochs(),
            sagemaker=self.getSageMakerTraining(),
            **groups,
        )

    def write(self) -> FMStageWriter:
        """Return a writer of this estimator's Params."""
        return FMStageWriter(self)

    @classmethod
    def read(cls) -> FMStageReader:
        """Return a reader of estimators."""
        return FMStageReader(cls)


Fitted = FactorizationMachineModel | TrainingDivergedError


class FittedModels(Iterator[tuple[int, FactorizationMachineModel]]):
    """Models by number, trained when the first is asked for; safe in threads.

    Parameters
    ----------
    train : callable
        Returns all outcomes.
    n_models : int
    """

    def __init__(self, train: Callable[[], list[Fitted]], n_models: int) -> None:
        self._train = train
        self._n_models = n_models
        self._outcomes: list[Fitted | None] | None = None
        self._failure: Exception | None = None
        self._next = 0
        self._lock = threading.Lock()

    def __next__(self) -> tuple[int, FactorizationMachineModel]:
        """Return the next number and model; raise what its training raised."""
        with self._lock:
            number = self._next
            if number >= self._n_models:
                raise StopIteration
            self._next += 1
            if self._failure is not None:
                raise self._failure
            if self._outcomes is None:
                try:
                    self._outcomes = list(self._train())
                except Exception as err:
                    self._failure = err  # another thread must not train again
                    raise
            outcome, self._outcomes[number] = self._outcomes[number], None
        if not isinstance(outcome, FactorizationMachineModel):
            raise outcome or RuntimeError("a model is given once")
        return number, outcome


def fit_all(
    stages: Sequence[Any],
    dataset: DataFrame,
    warm_start: FactorizationMachineModel | str | None = None,
) -> list[Fitted]:
    """Return a model for each estimator, or the error of one that no step size saves.

    Parameters
    ----------
    stages : sequence of FactorizationMachine
    dataset : DataFrame
    warm_start : FactorizationMachineModel or str, optional
        Model, or path of one, that all go on from.

    Raises
    ------
    InvalidParamError, InvalidColumnError, InvalidDataError, ModelTooLargeError
        Before any job, where no row has to be read to know.
    """
    check_batch_frame(dataset, "fit")
    start = None
    if warm_start is not None:
        model = warm_start
        if isinstance(model, str):
            model = FactorizationMachineModel.load(model)
        if not isinstance(model, FactorizationMachineModel):
            raise InvalidParamError(
                f"warmStart={model!r} is a {type(model).__name__}; expected a "
                "FactorizationMachineModel or the path of a saved one."
            )
        stages = [_going_on(stage, model) for stage in stages]
        start = WarmStart(model.weights, model.trainingState)
    requests = [stage._request(dataset) for stage in stages]
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, request in enumerate(requests):
        request.check()
        check_training_columns(dataset.schema, request.columns)
        groups.setdefault(packing_key(request), []).append(number)
    # Metrics of several models would share their names: only one alone is logged.
    callbacks = [mlflow_callback()] if len(stages) == 1 else []
    fitted: dict[int, Fitted] = {}
    for numbers in groups.values():
        chosen = [requests[number] for number in numbers]
        with open_trainer(internal_rows(dataset, chosen[0].columns), chosen[0]) as data:
            outcomes = data.train(chosen, start=start, callbacks=callbacks)
        for number, outcome in zip(numbers, outcomes, strict=True):
            if isinstance(outcome, TrainingDivergedError):
                fitted[number] = outcome
            else:
                fitted[number] = stages[number]._fitted(outcome)
    return [fitted[number] for number in range(len(stages))]


def check_param_maps(stage: Any, param_maps: Sequence[Any]) -> None:
    """Raise InvalidParamError for Params of another stage, which Spark would ignore."""
    for param_map in param_maps:
        for param in param_map:
            if isinstance(param, Param) and param.parent != stage.uid:
                raise InvalidParamError(
                    f"The param map sets {param.name} of {param.parent}, which has no effect on "
                    f"{stage.uid}. Take the Param from the estimator that is fitted."
                )


def _going_on(stage: Any, model: FactorizationMachineModel) -> Any:
    """Return the estimator with the model's number of factors; raise when they do not fit."""
    k = model.weights.k
    if stage.isSet(stage.numFactors) and stage.getNumFactors() != k:
        raise InvalidParamError(
            f"numFactors={stage.getNumFactors()} does not fit warmStart, a model of {k} factors. "
            f"Leave numFactors unset or set it to {k}."
        )
    if stage.getPredictorType() != model.getPredictorType():
        raise InvalidParamError(
            f"predictorType={stage.getPredictorType()!r} does not fit warmStart, a "
            f"{model.getPredictorType()!r}. Set it to that."
        )
    return stage.copy({stage.numFactors: k})
