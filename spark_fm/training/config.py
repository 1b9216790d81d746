"""What the Spark floor needs to train, free of Params; driver only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spark_fm.errors import InvalidParamError
from spark_fm.learner.metrics import validation_metrics
from spark_fm.learner.spec import Hyperparameters, require
from spark_fm.spark.schema import ColumnNames

SolverName = Literal["sgd", "gibbs", "auto"]
REFIT_ROWS = 1_000_000
MOST_GIBBS_FACTORS = 128


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training: hyperparameters, columns and how to distribute.

    The field names are part of checkpoints on disk.
    """

    spec: Hyperparameters
    columns: ColumnNames
    feature_dim: int = 0  # length of the feature vectors; 0 takes it from the data
    num_workers: int = 0  # partitions that train; 0 chooses
    averagings: int = 0  # averaging rounds an epoch; 0 chooses
    aggregation_depth: int = 0  # 1 averages on the driver, 2 on executors first; 0 chooses
    validation_fraction: float = 0.0  # of rows held out when there is no validation column
    metric: str = "logloss"  # the validation metric that decides
    patience: int = 0  # epochs without improvement before stopping; 0 never stops
    tol: float = 0.0  # relative improvement that counts
    refit: Literal["auto", "always", "never"] = "never"  # on all rows; "auto": REFIT_ROWS or less
    handle_invalid: Literal["error", "skip", "keep"] = "error"
    standardization: bool = True  # features train centred, where most rows have them, and scaled
    standardize_label: bool = True  # a regressor's labels train centred and scaled
    sweeps: int = 0  # of each chain of Gibbs sampling; 0 chooses
    sweep_patience: int = 0  # of each chain, as patience; 0 never stops
    keep_posterior: bool = False  # keep draws of Gibbs sampling with the model
    keep_snapshot: bool = False  # keep the training state with the model
    checkpoint_dir: str = ""  # folder of checkpoints; "" for none
    checkpoint_interval: int = 1  # epochs from one checkpoint to the next; the fewest sweeps
    device: Literal["cpu", "gpu", "auto"] = "cpu"  # "auto" is a GPU where tasks have one
    solver: SolverName = "sgd"  # "auto" tries both, and keeps what does better
    # Of "bias", "linear" and "factors", those whose learning rate a race chooses.
    chosen_rates: tuple[str, ...] = ()
    n_tried: int = 1  # settings of SGD of which this one did best on the held-out rows

    def check(self) -> None:
        """Raise InvalidParamError naming the Param whose value is out of range."""
        self.spec.check()
        require(0 <= self.feature_dim <= 2**31 - 1, "featureDim", self.feature_dim,
                "1 to 2,147,483,647, or leave it unset")  # fmt: skip
        require(0 <= self.num_workers <= 100_000, "numWorkers", self.num_workers,
                "1 to 100,000, or 0 to choose")  # fmt: skip
        require(0 <= self.averagings <= 1000, "averagingsPerEpoch", self.averagings,
                "1 to 1,000, or 0 to choose")  # fmt: skip
        require(self.aggregation_depth in (0, 1, 2), "aggregationDepth", self.aggregation_depth,
                "1 (the driver merges), 2 (executors merge first), or 0 to choose")  # fmt: skip
        require(0 <= self.validation_fraction < 1, "validationFraction", self.validation_fraction,
                "0 to less than 1")  # fmt: skip
        require(self.patience >= 0, "patience", self.patience, "0 (never stop early) or more")
        require(0 <= self.tol < float("inf"), "tol", self.tol, "a finite number >= 0")
        require(self.refit in ("auto", "always", "never"), "refit", self.refit,
                '"auto", "always" or "never"')  # fmt: skip
        require(self.handle_invalid in ("error", "skip", "keep"), "handleInvalid",
                self.handle_invalid, '"error", "skip" or "keep"')  # fmt: skip
        require(self.checkpoint_interval >= 1, "checkpointInterval", self.checkpoint_interval,
                "1 or more epochs")  # fmt: skip
        require(self.device in ("cpu", "gpu", "auto"), "device", self.device,
                '"cpu", "gpu" or "auto"')  # fmt: skip
        require(not (self.keep_snapshot and self.refit == "always"), "refit", self.refit,
                '"auto" or "never" with keepTrainingState=True: a refit is another training than '
                "the one that is kept")  # fmt: skip
        require(not self.spec.sagemaker or self.num_workers <= 1, "numWorkers", self.num_workers,
                "1, or 0 to choose, with sageMakerTraining=True: its mini-batches are of all rows "
                "in their order")  # fmt: skip
        require(not (self.spec.sagemaker and self.standardization), "standardization",
                self.standardization,
                "False, or leave it unset, with sageMakerTraining=True")  # fmt: skip
        require(self.solver in ("sgd", "gibbs", "auto"), "solver", self.solver,
                '"sgd", "gibbs" or "auto"')  # fmt: skip
        require(self.solver == "gibbs" or not self.keep_posterior, "solver", self.solver,
                '"gibbs", or leave it unset, with keepPosterior=True')  # fmt: skip
        if self.solver == "gibbs":
            self._check_gibbs()
        known = validation_metrics(self.spec.loss)
        if self.metric not in known:
            raise InvalidParamError(
                f"validationMetric={self.metric!r} is not allowed: expected one of "
                f"{', '.join(map(repr, known))} for this predictorType, or leave it unset."
            )

    def _check_gibbs(self) -> None:
        """Raise InvalidParamError for what Gibbs sampling does not do."""
        spec = self.spec
        for ok, name, value, allowed in (
            (not spec.sagemaker, "sageMakerTraining", spec.sagemaker, "False"),
            (spec.k <= MOST_GIBBS_FACTORS, "numFactors", spec.k,
             f"1 to {MOST_GIBBS_FACTORS}, because a draw costs numFactors^2"),
            (spec.use_linear, "useLinear", spec.use_linear, "True"),
            (self.num_workers <= 1, "numWorkers", self.num_workers,
             '1 or 0 (every chain takes all rows; solver="sgd" trains in partitions)'),
            (self.device != "gpu", "device", self.device, '"cpu"'),
            (not self.keep_snapshot, "keepTrainingState", self.keep_snapshot, "False"),
        ):  # fmt: skip
            require(ok, name, value, f'{allowed} with solver="gibbs"')
