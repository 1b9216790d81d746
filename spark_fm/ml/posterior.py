"""The posterior of a model: predictions with their standard deviation, with Spark and without."""

from __future__ import annotations

from typing import Any, Literal, overload

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.learner.losses import Floats
from spark_fm.learner.weights import Posterior
from spark_fm.ml.base import FittedModel, broadcast_once
from spark_fm.scoring.columns import MEAN_AND_STD, PosteriorTask, with_structs
from spark_fm.spark.schema import check_frame, check_outputs


class FMPosterior:
    """Draws from the posterior of a model's parameters, as ``model.posterior`` returns it.

    Saved and loaded with the model. The parameters of the model itself are those of one
    machine whose scores are close to the mean over all draws; these are 40 of them.

    Notes
    -----
    Predictions cost as much as those of 40 models.
    """

    def __init__(self, model: FittedModel, posterior: Posterior) -> None:
        self._model = model
        self._posterior = posterior

    def __len__(self) -> int:
        """Return the number of draws."""
        return len(self._posterior.members)

    def __repr__(self) -> str:
        """Show the number of draws."""
        return f"FMPosterior({len(self)} draws of {self._model!r})"

    @property
    def noise(self) -> Floats:
        """Standard deviation of a label about its score, with each draw; 0 of a classifier."""
        return self._posterior.noise

    @overload
    def predict(self, X: Any, return_std: Literal[False] = False) -> Floats: ...

    @overload
    def predict(self, X: Any, return_std: Literal[True]) -> tuple[Floats, Floats]: ...

    def predict(self, X: Any, return_std: bool = False) -> Floats | tuple[Floats, Floats]:
        """Return the mean prediction of the draws without Spark, and its standard deviation.

        Parameters
        ----------
        X : sparse matrix or array_like of shape (n_rows, n_features)
        return_std : bool, default False

        Returns
        -------
        mean : ndarray of shape (n_rows,), float64
            The regressor's value, or P(label = 1).
        std : ndarray of shape (n_rows,), float64
            With ``return_std``: of a regressor the standard deviation of the label, noise
            included, so that mean +- 1.645 std holds about 90 % of labels; of a classifier
            that of the probability between draws.

        Raises
        ------
        InvalidDataError
            As ``model.predict`` does.
        """
        mean, std = self._posterior.predict(self._model._rows(X), self._model._loss)
        return (mean, std) if return_std else mean

    def transform(self, dataset: DataFrame, stdCol: str = "score_std") -> DataFrame:
        """Add the columns of the mean prediction (``scoreCol``) and its standard deviation.

        Parameters
        ----------
        dataset : DataFrame
        stdCol : str, default "score_std"

        Returns
        -------
        DataFrame
            With two more columns of doubles, which are those of ``predict``.

        Raises
        ------
        InvalidColumnError, InvalidDataError
            As ``model.transform`` does.
        """
        model, session = self._model, dataset.sparkSession
        check_frame(dataset)
        reader, names = model._reader(dataset), {"scoreCol": model.getScoreCol(), "stdCol": stdCol}
        check_outputs(dataset, names)
        value = broadcast_once(session, self._posterior, n_bytes=self._posterior.n_bytes)
        task = PosteriorTask(value, model._loss, reader)
        result, scored = with_structs(dataset, task, MEAN_AND_STD)
        if reader.handle_invalid == "skip":
            result = result.where(F.col(scored)["mean"].isNotNull())
        added = [
            F.col(scored)[part].alias(name)
            for part, name in zip(MEAN_AND_STD.names, names.values(), strict=True)
        ]
        return result.select("*", *added).drop(scored)
