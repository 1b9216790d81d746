"""The posterior of a model: predictions with their standard deviation, with Spark and without."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.loaded import LoadedPosterior
from spark_fm.ml.base import FittedModel, broadcast_once
from spark_fm.scoring.columns import MEAN_AND_STD, PosteriorTask, with_structs
from spark_fm.spark.schema import check_outputs


class FMPosterior(LoadedPosterior):
    """Draws from the posterior of a model's parameters, as ``model.posterior`` returns it.

    Saved and loaded with the model. The parameters of the model itself are those of one
    machine whose scores are close to the mean over all draws; these are 40 of them.

    Notes
    -----
    Predictions cost as much as those of 40 models.
    """

    _model: FittedModel

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
        model, posterior = self._model, self._posterior
        reader, names = model._reader(dataset), {"scoreCol": model.getScoreCol(), "stdCol": stdCol}
        check_outputs(dataset, names)
        value = broadcast_once(dataset.sparkSession, posterior, n_bytes=posterior.n_bytes)
        task = PosteriorTask(value, model._loss, reader)
        result, scored = with_structs(dataset, task, MEAN_AND_STD)
        if reader.handle_invalid == "skip":
            result = result.where(F.col(scored)["mean"].isNotNull())
        added = [
            F.col(scored)[part].alias(name)
            for part, name in zip(MEAN_AND_STD.names, names.values(), strict=True)
        ]
        return result.select("*", *added).drop(scored)
