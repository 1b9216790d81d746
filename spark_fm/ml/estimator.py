"""The estimator; driver only. Its module path is part of the on-disk format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyspark.ml import Estimator
from pyspark.ml.param import Param
from pyspark.ml.util import MLReadable, MLWritable
from pyspark.sql import DataFrame

from spark_fm.errors import InvalidParamError, TrainingDivergedError
from spark_fm.formats.models.stages import no_model
from spark_fm.learner.losses import loss_of_predictor
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters, require
from spark_fm.learner.training import WarmStart
from spark_fm.ml.hyperparameters import FromHyperparameters
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.params import OF_SGD
from spark_fm.ml.persistence import FMStageReader, FMStageWriter
from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.ml.tracking import autologged, mlflow_callback
from spark_fm.spark.schema import (
    ColumnNames,
    check_batch_frame,
    check_training_columns,
    find_column,
    internal_rows,
    vector_size,
)
from spark_fm.training.config import TrainConfig
from spark_fm.training.dataset import packing_key
from spark_fm.training.trainer import TrainResult, open_trainer

if TYPE_CHECKING:
    from pyspark.ml._typing import ParamMap


class FactorizationMachine(
    Estimator[FactorizationMachineModel],
    FromHyperparameters,
    MLReadable["FactorizationMachine"],
    MLWritable,
):
    """Second-order factorization machine for binary classification and regression.

    ``score(x) = w0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j`` [1]_, trained by
    stochastic gradient descent on each partition, with the models averaged in between.

    Every Param of ``explainParams()`` is a keyword argument and has a setter and a
    getter.

    Notes
    -----
    ``fit`` runs on Spark Classic and Spark Connect. The same seed and input partitions
    give the same model, bit for bit, even if tasks are retried. Cost of an epoch:
    O(non-zeros x numFactors) arithmetic and, if more than one partition trains,
    ``averagingsPerEpoch`` transfers of the updated features' parameters.

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
            Model, or path of a saved one, to start from: its parameters for the features
            it knows, initial values for the others. ``numFactors`` is the model's. If the
            model was trained with ``keepTrainingState`` on the same rows, the training
            continues for ``epochs`` more, bit for bit as if it had not stopped; on other
            rows it starts with the model's optimizer statistics.

        Returns
        -------
        FactorizationMachineModel, or a list of them

        Raises
        ------
        InvalidParamError, InvalidColumnError, InvalidDataError, ModelTooLargeError,
        TrainingDivergedError
        GpuNotFoundError
            With ``device="gpu"``, if tasks have no working GPU.
        CheckpointError
            When ``checkpointDir`` holds the checkpoint of another training.
        """
        if isinstance(params, dict):
            self._check_param_maps([params])
        with autologged() as log_fits:
            if isinstance(params, (list, tuple)):
                fitted = dict(self._fit_multiple(dataset, params, warmStart))
                models = [fitted[number] for number in range(len(params))]
                log_fits([(self.copy(p), m) for p, m in zip(params, models, strict=True)])
                return models
            estimator = self.copy(params) if params else self
            if warmStart is None:
                model = super().fit(dataset, params)
            else:
                model = estimator._fit(dataset, warmStart)
            log_fits([(estimator, model)])
            return model

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
            packed rows; of these, models with the same partitioning share the passes.

        Returns
        -------
        iterator of (int, FactorizationMachineModel)
            The number of the map and its model, the same as from ``fit``. Safe to use
            from several threads. The first call trains all models.
        """
        return self._fit_multiple(dataset, paramMaps, None)

    def _fit_multiple(
        self,
        dataset: DataFrame,
        param_maps: Sequence[ParamMap],
        warm_start: FactorizationMachineModel | str | None,
    ) -> _FitMultipleIterator:
        self._check_param_maps(param_maps)
        estimators = [self.copy(param_map) for param_map in param_maps]
        return _FitMultipleIterator(
            lambda: fit_all(estimators, dataset, warm_start), len(estimators)
        )

    def _fit(
        self, dataset: DataFrame, warm_start: FactorizationMachineModel | str | None = None
    ) -> FactorizationMachineModel:
        [outcome] = fit_all([self], dataset, warm_start)
        if isinstance(outcome, TrainingDivergedError):
            raise outcome
        return outcome

    def _train_config(self, dataset: DataFrame | None = None) -> TrainConfig:
        """Return what a training takes; raise InvalidParamError for values out of range.

        Without a dataset the number of features may be left open.
        """
        loss = loss_of_predictor(self.getPredictorType())
        require(0 <= self.getThreshold() <= 1, "threshold", self.getThreshold(), "0 to 1")
        spec, columns = self._spec(), ColumnNames(**self._fields("columns"))
        fields = self._fields("config")
        feature_dim = fields["feature_dim"]
        require(feature_dim is None or feature_dim >= 1, "featureDim", feature_dim,
                "1 to 2,147,483,647, or leave it unset")  # fmt: skip
        if feature_dim is None and dataset is not None:
            column = find_column(dataset, columns.features)
            feature_dim = None if column is None else vector_size(column)
        fields["feature_dim"] = feature_dim or 0
        fields["metric"] = fields["metric"] or loss.default_metric
        if spec.sagemaker:
            fields["standardization"] = self.isSet("standardization") and fields["standardization"]
        fields["sweeps"] = spec.epochs if self.isSet("epochs") else 0
        fields["sweep_patience"] = self.getPatience() if self.isSet("patience") else 0
        if fields["solver"] == "auto" and fields["keep_posterior"]:
            fields["solver"] = "gibbs"
        if fields["solver"] == "auto" and any(map(self.isSet, OF_SGD)):
            fields["solver"] = "sgd"
        if fields["solver"] != "gibbs" and not spec.sagemaker:
            fields["chosen_rates"] = tuple(
                group for group in ("bias", "linear", "factors") if not self.isSet(f"{group}Lr")
            )
        config = TrainConfig(spec=spec, columns=columns, **fields)
        config.check()
        return config

    def _check(self) -> None:
        self._train_config()

    def _spec(self) -> Hyperparameters:
        groups: dict[str, Any] = {
            group: GroupHyperparameters(**self._fields(group))
            for group in ("bias", "linear", "factors")
        }
        return Hyperparameters(loss=self._loss, **groups, **self._fields("spec"))

    def _model(self, result: TrainResult) -> FactorizationMachineModel:
        """Return the model of a finished training, with this estimator's Params and uid."""
        summary = FMTrainingSummary(result.history, result.summary)
        model = FactorizationMachineModel(
            result.weights, summary, result.training_state, posterior=result.posterior
        )
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _continuing(self, model: FactorizationMachineModel) -> FactorizationMachine:
        """Return a copy with the model's number of factors; raise when they do not match."""
        k = model.weights.k
        if self.isSet(self.numFactors) and self.getNumFactors() != k:
            raise InvalidParamError(
                f"numFactors={self.getNumFactors()} does not fit warmStart, a model of {k} "
                f"factors. Leave numFactors unset or set it to {k}."
            )
        if self.getPredictorType() != model.getPredictorType():
            raise InvalidParamError(
                f"predictorType={self.getPredictorType()!r} does not fit warmStart, a "
                f"{model.getPredictorType()!r}. Set it to that."
            )
        return self.copy({self.numFactors: k})

    def _check_param_maps(self, param_maps: Sequence[ParamMap]) -> None:
        """Raise InvalidParamError for Params of another stage, which Spark would ignore."""
        for param in (param for param_map in param_maps for param in param_map):
            if isinstance(param, Param) and param.parent != self.uid:
                raise InvalidParamError(
                    f"The param map sets {param.name} of {param.parent}, which has no effect on "
                    f"{self.uid}. Take the Param from the estimator that is fitted."
                )

    def write(self) -> FMStageWriter:
        """Return a writer of this estimator."""
        return FMStageWriter(self)

    @classmethod
    def read(cls) -> FMStageReader:
        """Return a reader of estimators."""
        return FMStageReader(cls)


Fitted = FactorizationMachineModel | TrainingDivergedError


class _FitMultipleIterator(Iterator[tuple[int, FactorizationMachineModel]]):
    """Models by number, all trained when the first is asked for; safe in threads."""

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
            raise outcome or RuntimeError("each model is returned once")
        return number, outcome


def fit_all(
    estimators: Sequence[FactorizationMachine],
    dataset: DataFrame,
    warm_start: FactorizationMachineModel | str | None = None,
) -> list[Fitted]:
    """Return for each estimator its model, or the error of its training if it diverged.

    Wrong Params and columns raise before any job. Estimators that agree in how rows are
    packed share the packed rows.
    """
    check_batch_frame(dataset, "fit")
    start = None
    if warm_start is not None:
        model = _loaded(warm_start)
        estimators = [estimator._continuing(model) for estimator in estimators]
        start = WarmStart(model.weights, model.trainingState)
    configs = [estimator._train_config(dataset) for estimator in estimators]
    if start is not None:
        configs = [
            replace(config, solver="sgd") if config.solver == "auto" else config
            for config in configs
        ]
    numbers_by_packing: dict[tuple[object, ...], list[int]] = {}
    for number, config in enumerate(configs):
        require(start is None or config.solver == "sgd", "solver", config.solver,
                '"sgd" with warmStart: chains start anew')  # fmt: skip
        check_training_columns(dataset, config.columns)
        numbers_by_packing.setdefault(packing_key(config), []).append(number)
    # Metrics of several models would share their names: only those of a single one are logged.
    callbacks = [mlflow_callback()] if len(estimators) == 1 else []
    fitted: dict[int, Fitted] = {}
    for numbers in numbers_by_packing.values():
        together = [configs[number] for number in numbers]
        with open_trainer(internal_rows(dataset, together[0].columns), together[0]) as trainer:
            outcomes = trainer.train(together, start=start, callbacks=callbacks)
        for number, outcome in zip(numbers, outcomes, strict=True):
            if isinstance(outcome, TrainingDivergedError):
                fitted[number] = outcome
            else:
                fitted[number] = estimators[number]._model(outcome)
    return [fitted[number] for number in range(len(estimators))]


def _loaded(warm_start: FactorizationMachineModel | str) -> FactorizationMachineModel:
    model = warm_start
    if isinstance(model, str):
        model = FactorizationMachineModel.load(model)
    if not isinstance(model, FactorizationMachineModel):
        words = no_model(f"warmStart={model!r} is", type(model).__name__)
        raise InvalidParamError(f"{words} The path of a saved model is taken, too.")
    return model
