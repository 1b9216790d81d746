"""Fit one or many estimators of the same data, sharing its packing and its passes; driver only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pyspark.ml.param import Param
from pyspark.sql import DataFrame

from spark_fm.errors import InvalidParamError, TrainingDivergedError
from spark_fm.learner.training import WarmStart
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.spark.schema import check_batch_frame, check_training_columns, internal_rows
from spark_fm.training.callbacks import logged_to_mlflow
from spark_fm.training.dataset import packing_key
from spark_fm.training.trainer import training_set

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
    listeners = [logged_to_mlflow()] if len(stages) == 1 else []
    fitted: dict[int, Fitted] = {}
    for numbers in groups.values():
        chosen = [requests[number] for number in numbers]
        with training_set(internal_rows(dataset, chosen[0].columns), chosen[0]) as data:
            outcomes = data.train(chosen, start=start, listeners=listeners)
        for number, outcome in zip(numbers, outcomes, strict=True):
            if isinstance(outcome, TrainingDivergedError):
                fitted[number] = outcome
            else:
                fitted[number] = stages[number]._fitted(outcome)
    return [fitted[number] for number in range(len(stages))]


def check_own(stage: Any, param_maps: Sequence[Any]) -> None:
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
