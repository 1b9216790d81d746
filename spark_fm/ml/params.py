"""Params of the estimator and the model, one row of a table each; driver only.

``accessors.py`` makes the Params, getters, setters and keyword arguments from the table. To
add a Param, write its row, use its value, and run ``make params``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark import keyword_only
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

from spark_fm.learner.losses import BINARY, LOSSES, loss_of_predictor
from spark_fm.learner.metrics import validation_metrics
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.learner.spec import LossName, require
from spark_fm.ml.foreign_names import nearest_names

if TYPE_CHECKING:
    from typing_extensions import Self

C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True)
class ParamRow:
    """One Param: what it is called, what it takes, what it means and where its value goes."""

    name: str
    kind: type[Any]
    default: Any  # None: unset
    doc: str  # "": the Param is one of Spark's mixins
    # Field that takes the value, as "spec.k": of Hyperparameters (spec), one of its groups (bias,
    # linear, factors), TrainConfig (config) or ColumnNames (columns). "": read where it is used.
    feeds: str = ""
    on_model: bool = False  # the model has the setter too

    @property
    def is_of_sgd(self) -> bool:
        """Whether the Param says how SGD trains, or for how long."""
        part = self.feeds.partition(".")[0]
        return part in ("bias", "linear", "factors", "spec", "config") and (
            self.feeds not in _OF_ANY_SOLVER
        )

    @property
    def is_basic(self) -> bool:
        """Whether the Param is one of those to know first."""
        return self.name in _BASIC

    @property
    def getter(self) -> str:
        """Name of the getter."""
        return f"get{self.name[0].upper()}{self.name[1:]}"

    @property
    def setter(self) -> str:
        """Name of the setter."""
        return f"set{self.name[0].upper()}{self.name[1:]}"

    @property
    def is_learning_rate(self) -> bool:
        """Whether the optimizer chooses the value of an unset Param."""
        return self.name.endswith("Lr")

    @property
    def getter_type(self) -> str:
        """What the getter returns."""
        may_be_none = self.default is None and not self.is_learning_rate
        return f"{self.kind.__name__} | None" if may_be_none else self.kind.__name__

    def describe(self, action: str) -> str:
        """Return the docstring of an accessor that does ``action``."""
        unset = ""
        if action == "Return" and self.default is None:
            value = "the optimizer's default" if self.is_learning_rate else "None"
            unset = f", or {value} when it is unset"
        return f"{action} {self.name}{unset}{f': {self.doc}' if self.doc else ''}."


_BASIC = (
    "featuresCol", "labelCol", "weightCol", "validationIndicatorCol", "predictorType",
    "numFactors", "solver", "epochs", "validationFraction", "validationMetric", "patience", "refit",
    "handleInvalid", "seed", "numWorkers",
)  # fmt: skip

# Fields of Hyperparameters and TrainConfig that mean the same whoever trains.
_OF_ANY_SOLVER = (
    "spec.k", "spec.use_bias", "spec.seed", "config.feature_dim", "config.standardization",
    "config.validation_fraction", "config.metric", "config.refit", "config.handle_invalid",
    "config.solver", "config.keep_posterior",
)  # fmt: skip

_METHODS = '"normal", "uniform" or "constant"'

# In the order of the keyword arguments.
PARAMS = (
    ParamRow("featuresCol", str, "features", "", "columns.features", on_model=True),
    ParamRow("labelCol", str, "label", "", "columns.label"),
    ParamRow("weightCol", str, None, "", "columns.weight"),
    ParamRow("validationIndicatorCol", str, None, "", "columns.validation"),
    ParamRow("predictionCol", str, "prediction",
             'prediction column of pyspark.ml: predicted label or value ("" = not written)',
             on_model=True),
    ParamRow("probabilityCol", str, "probability",
             'column of the vector [P(0), P(1)], classifier only ("" = not written)',
             on_model=True),
    ParamRow("rawPredictionCol", str, "rawPrediction",
             'column of the vector [-margin, margin], classifier only ("" = not written)',
             on_model=True),
    ParamRow("scoreCol", str, "score",
             "score column: P(label = 1), or the predicted value of a regressor", on_model=True),
    ParamRow("predictedLabelCol", str, "predicted_label",
             "predicted label column, 1.0 where score >= threshold; classifier only "
             '("" = not written)', on_model=True),
    ParamRow("threshold", float, 0.5,
             "smallest score for which the predicted label is 1 (0 to 1)", on_model=True),
    ParamRow("predictorType", str, BINARY, '"binary_classifier" (labels 0 and 1) or "regressor"'),
    ParamRow("numFactors", int, 16, "dimension of the factor vectors (1 to 16,384)", "spec.k"),
    ParamRow("featureDim", int, None,
             "length of the feature vectors (1 to 2^31 - 1); unset: the vectors' own size",
             "config.feature_dim"),
    ParamRow("useBias", bool, True, "whether the model has the bias w0", "spec.use_bias"),
    ParamRow("useLinear", bool, True, "whether the model has the linear weights w",
             "spec.use_linear"),
    ParamRow("solver", str, "auto",
             '"sgd" (stochastic gradients, by the optimizer); "gibbs" (the mean of a Bayesian '
             "posterior, by four chains of `epochs` sweeps, unset 50 to 200; for ratings and other "
             'sparse data of few columns); "auto" trains both on small data and keeps what does '
             "better on held-out rows, or SGD where a Param that it alone has, or epochs, is set",
             "config.solver"),
    ParamRow("optimizer", str, "adagrad", '"adagrad", "sgd" or "adam"', "spec.optimizer"),
    ParamRow("epochs", int, 50, "maximum number of passes over the training rows (>= 1)",
             "spec.epochs"),
    ParamRow("shuffle", bool, True, "take the rows in a new random order every epoch",
             "spec.shuffle"),
    ParamRow("adagradInit", float, 1.0, "initial value of AdaGrad's sums of squares (>= 0)",
             "spec.adagrad_init"),
    ParamRow("miniBatchSize", int, 1, "rows per update (>= 1); 1 updates after every row",
             "spec.mini_batch_size"),
    ParamRow("biasLr", float, None,
             "learning rate of the bias (>= 0); unset: chosen on held-out rows", "bias.lr"),
    ParamRow("linearLr", float, None,
             "learning rate of the linear weights (>= 0); unset: chosen on held-out rows",
             "linear.lr"),
    ParamRow("factorsLr", float, None,
             "learning rate of the factors (>= 0); unset: chosen on held-out rows", "factors.lr"),
    ParamRow("biasWd", float, 0.0, "L2 weight decay of the bias (>= 0)", "bias.wd"),
    ParamRow("linearWd", float, 0.005, "L2 weight decay of the linear weights (>= 0)",
             "linear.wd"),
    ParamRow("factorsWd", float, 0.012, "L2 weight decay of the factors (>= 0)", "factors.wd"),
    ParamRow("decayFrequencyPower", float, 0.5,
             "the weight decay of a feature with c training non-zeros is multiplied by "
             "(1000 / c)^power per update (0 to 1); 0 treats all alike",
             "spec.decay_frequency_power"),
    ParamRow("clipGradient", float, None,
             "bound on each gradient coordinate, weight decay included (> 0); unset: none",
             "spec.clip_gradient"),
    ParamRow("eps", float, 1e-8, "added to the square root in AdaGrad and Adam (>= 0)",
             "spec.eps"),
    ParamRow("rescaleGrad", float, None,
             "factor on a mini-batch's summed loss gradient (> 0); unset: one over its rows",
             "spec.rescale_grad"),
    ParamRow("averageEpochs", bool, True,
             "return the average of the models after each epoch, late ones weighing most",
             "spec.average_epochs"),
    ParamRow("sageMakerTraining", bool, False,
             "treat rows as SageMaker's algorithm does: one worker; the last mini-batch is filled "
             "up with empty rows of label 0; zeros of dense vectors are entries; vectors have the "
             "length featureDim; features that no row has keep their initial values",
             "spec.sagemaker"),
    ParamRow("standardization", bool, True,
             "train on features divided by their standard deviation, and centred where most rows "
             "have them; one-hot features stay as they are, and the model is in feature units; "
             "not with sageMakerTraining",
             "config.standardization"),
    ParamRow("standardizeLabel", bool, True,
             "train a regressor on labels less their mean and divided by their standard deviation; "
             "scores and biasInitValue are in label units",
             "config.standardize_label"),
    ParamRow("biasInitMethod", str, "constant", _METHODS, "bias.init_method"),
    ParamRow("biasInitScale", float, 0.01, "half width of the uniform initial bias (>= 0)",
             "bias.init_scale"),
    ParamRow("biasInitSigma", float, 0.01,
             "standard deviation of the normal initial bias (>= 0)", "bias.init_sigma"),
    ParamRow("biasInitValue", float, None,
             "constant initial bias (any number); unset: the mean label, as log-odds for a "
             "classifier",
             "bias.init_value"),
    ParamRow("linearInitMethod", str, "constant", _METHODS, "linear.init_method"),
    ParamRow("linearInitScale", float, 0.01,
             "half width of the uniform initial linear weights (>= 0)", "linear.init_scale"),
    ParamRow("linearInitSigma", float, 0.01,
             "standard deviation of the normal initial linear weights (>= 0)",
             "linear.init_sigma"),
    ParamRow("linearInitValue", float, 0.0, "constant initial linear weight (any number)",
             "linear.init_value"),
    ParamRow("factorsInitMethod", str, "normal", _METHODS, "factors.init_method"),
    ParamRow("factorsInitScale", float, 0.02, "half width of the uniform initial factors (>= 0)",
             "factors.init_scale"),
    ParamRow("factorsInitSigma", float, 0.02,
             "standard deviation of the normal initial factors (>= 0)", "factors.init_sigma"),
    ParamRow("factorsInitValue", float, 0.01, "constant initial factor (any number)",
             "factors.init_value"),
    ParamRow("numWorkers", int, 0, "partitions that train, one task each (>= 1); 0 chooses",
             "config.num_workers"),
    ParamRow("averagingsPerEpoch", int, 0,
             "how often per epoch the partitions' models are averaged (>= 1); 0 chooses",
             "config.averagings"),
    ParamRow("aggregationDepth", int, 0,
             "1 averages on the driver, 2 on executors first; 0 chooses by size",
             "config.aggregation_depth"),
    ParamRow("device", str, "cpu",
             'what trains, and scores large batches: "cpu"; "gpu", which fit requires tasks to '
             'have; "auto" for a GPU where they have one',
             "config.device", on_model=True),
    ParamRow("validationFraction", float, 0.1,
             "fraction of the rows held out to choose the best epoch (0 to < 1), without a "
             "validationIndicatorCol; rows are chosen by their features, whatever the labels",
             "config.validation_fraction"),
    ParamRow("validationMetric", str, None,
             'metric of the best epoch: "logloss", "accuracy", "f1", "roc_auc" or "pr_auc" of a '
             'classifier, "rmse", "mae" or "r2" of a regressor; unset: logloss or rmse',
             "config.metric"),
    ParamRow("patience", int, 5,
             "epochs without improvement before training stops (>= 0); 0 never stops. A chain of "
             "Gibbs sampling stops by it only where it is set",
             "config.patience"),
    ParamRow("refit", str, "auto",
             "train again on all rows, held-out ones included, for the best number of epochs: "
             '"auto" (up to a million rows), "always" or "never"',
             "config.refit"),
    ParamRow("handleInvalid", str, "error",
             'rows with null, NaN or out-of-range data: "error", "skip" (drop and count), or '
             '"keep" (null score in transform, the same as skip in fit)',
             "config.handle_invalid", on_model=True),
    ParamRow("keepTrainingState", bool, False,
             "keep the training state with the model, so that a fit with warmStart=model continues "
             "as if it had never stopped; the model is then not refit on all rows",
             "config.keep_snapshot"),
    ParamRow("keepPosterior", bool, False,
             "keep 40 draws of the posterior with the model, for model.posterior: predictions with "
             "their standard deviation; trains by Gibbs sampling",
             "config.keep_posterior"),
    ParamRow("checkpointDir", str, "",
             'folder where fit writes checkpoints, and from which it resumes ("" = nowhere)',
             "config.checkpoint_dir"),
    ParamRow("checkpointInterval", int, 1,
             "epochs from one checkpoint to the next; of Gibbs sampling the fewest sweeps (>= 1)",
             "config.checkpoint_interval"),
    ParamRow("seed", int, 0, "", "spec.seed"),
    ParamRow("tol", float, 1e-4,
             "relative improvement of the validation metric that counts (>= 0)", "config.tol"),
)  # fmt: skip

OF_SGD = tuple(row.name for row in PARAMS if row.is_of_sgd)
DEFAULTS = {row.name: row.default for row in PARAMS if row.default is not None}

_CONVERTERS: dict[type[Any], Callable[[Any], Any]] = {
    bool: TypeConverters.toBoolean,
    float: TypeConverters.toFloat,
    int: TypeConverters.toInt,
    str: TypeConverters.toString,
}


class FMParamsBase(
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
    """What the Params of the table have in common.

    A value is checked when it is set, and what values must agree in when it is used.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(**DEFAULTS)

    def _set(self, **kwargs: Any) -> Self:
        """Set Params; None unsets one, where Spark would store a None that cannot be loaded."""
        for name, value in kwargs.items():
            if value is None:
                self.clear(self.getParam(name))
            elif name == "featuresCol" and isinstance(value, (list, tuple)):
                raise TypeError(
                    f"featuresCol={value!r} is a {type(value).__name__}; expected the name of one "
                    f"column of vectors. VectorAssembler(inputCols={list(value)!r}, "
                    'outputCol="features") makes it.'
                )
            else:
                self._check_value(name, value)
        return super()._set(**{n: v for n, v in kwargs.items() if v is not None})

    def set(self, param: Param[Any], value: Any) -> None:
        """Set a Param; None unsets it."""
        self._shouldOwn(param)
        self._set(**{param.name: value})

    def _check_value(self, name: str, value: Any) -> None:
        """Raise InvalidParamError for a value that is not allowed, whatever the others are."""
        alone = type(self)()
        Params._set(alone, **{name: value})
        for loss in LOSSES.values():
            if name == "validationMetric" and value in validation_metrics(loss.name):
                alone._setDefault(predictorType=loss.predictor_type)
        alone._check()

    def _check(self) -> None:
        """Raise InvalidParamError for values with which nothing can be scored."""
        invalid, device = self.getOrDefault("handleInvalid"), self.getOrDefault("device")
        threshold = self.getOrDefault("threshold")
        require(0 <= threshold <= 1, "threshold", threshold, "0 to 1")
        require(invalid in ("error", "skip", "keep"), "handleInvalid", invalid,
                '"error", "skip" or "keep"')  # fmt: skip
        require(device in ("cpu", "gpu", "auto"), "device", device,
                '"cpu", "gpu" or "auto"')  # fmt: skip

    @property
    def _loss(self) -> LossName:
        return loss_of_predictor(self.getOrDefault("predictorType")).name

    def _value(self, row: ParamRow) -> Any:
        """Return a Param's value; when it is unset, None or the optimizer's learning rate."""
        value = self.getOrDefault(row.name) if self.isDefined(row.name) else None
        if row.default is not None or value not in (None, ""):
            return value
        if row.is_learning_rate:
            optimizer = OPTIMIZERS.get(self.getOrDefault("optimizer"))
            return 0.0 if optimizer is None else optimizer.default_lr  # its name is checked later
        return None

    def _fields(self, owner: str) -> dict[str, Any]:
        """Return the values of the Params that feed a dataclass, by field."""
        prefix = f"{owner}."
        rows = [row for row in PARAMS if row.feeds.startswith(prefix)]
        return {row.feeds.removeprefix(prefix): self._value(row) for row in rows}


class KeywordParams(FMParamsBase):
    """``__init__`` and ``setParams`` that take each Param of the table as a keyword argument."""

    _input_kwargs: dict[str, Any]
    _other_names: tuple[str, ...] = ()  # that a subclass takes beside the Params

    @keyword_only
    def __init__(self, **params: Any) -> None:
        params = self._in_our_names("__init__", params)
        super().__init__()
        self.setParams(**params)

    @keyword_only
    def setParams(self, **params: Any) -> Self:
        """Set the Params that are given; None unsets one."""
        return self._set(**self._in_our_names("setParams", params))

    def _in_our_names(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return keyword arguments; raise the TypeError that a signature with all would raise."""
        unknown = [name for name in params if name not in _SIGNATURE.parameters]
        if unknown:
            hint = nearest_names(unknown[0], [*_SIGNATURE.parameters, *self._other_names])
            raise TypeError(
                f"{type(self).__name__}.{method}() got an unexpected keyword argument "
                f"{unknown[0]!r}" + (f"; {hint}" if hint else "")
            )
        return params


# What inspect and help() read in place of **params.
_SIGNATURE = Signature(
    [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)]
    + [
        Parameter(
            row.name,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=f"{row.kind.__name__} | None",
        )
        for row in PARAMS
    ]
)
for _method in ("__init__", "setParams"):
    vars(KeywordParams)[_method].__signature__ = _SIGNATURE


def with_params(cls: C) -> C:
    """Give a class the Param and the getter of each row, but for those that Spark has."""
    for row in PARAMS:
        if row.doc:
            setattr(cls, row.name, Param(Params._dummy(), row.name, row.doc, _CONVERTERS[row.kind]))
        if not hasattr(cls, row.getter):
            setattr(cls, row.getter, _getter(cls, row))
    return cls


def with_setters(rows: Sequence[ParamRow]) -> Callable[[C], C]:
    """Give a class the setter of each row."""

    def decorate(cls: C) -> C:
        for row in rows:
            setattr(cls, row.setter, _setter(cls, row))
        return cls

    return decorate


def _getter(cls: type[Any], row: ParamRow) -> Callable[..., Any]:
    def getter(self: FMParamsBase) -> Any:
        return self._value(row)

    getter.__annotations__ = {"return": row.getter_type}
    return _named(getter, cls, row.getter, row.describe("Return"))


def _setter(cls: type[Any], row: ParamRow) -> Callable[..., Any]:
    def setter(self: FMParamsBase, value: Any) -> Any:
        return self._set(**{row.name: value})

    setter.__annotations__ = {"value": row.kind.__name__, "return": "Self"}
    return _named(setter, cls, row.setter, row.describe("Set"))


def _named(method: Any, cls: type[Any], name: str, doc: str) -> Callable[..., Any]:
    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    method.__module__, method.__doc__ = cls.__module__, doc
    return method  # type: ignore[no-any-return]
