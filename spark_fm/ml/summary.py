"""The summary of a training, epoch by epoch; driver only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame

from spark_fm.errors import SparkFMError
from spark_fm.learner.metrics import ScoreGroups
from spark_fm.ml.evaluation import EvaluateMethods, FMEvaluation
from spark_fm.ml.html import against_constant, card
from spark_fm.ml.plots import (
    CALIBRATION_GROUPS,
    draw_calibration,
    draw_errors,
    draw_losses,
    draw_precision_recall,
    draw_r2,
    draw_roc,
    finish,
    new_figure,
)


@dataclass(frozen=True, slots=True)
class FMTrainingSummary:
    """Summary of a training, saved and loaded with the model.

    Parameters
    ----------
    rows : list of dict
        One per epoch: losses and validation metrics, rows per second, seconds by phase,
        and the learning rates with their scale after rollbacks; of Gibbs sampling one per sweep,
        with noise and precisions instead.
    facts : dict
        Numbers of rows, features, skipped rows, partitions and averagings, the best epoch,
        rollbacks of diverging epochs (``stepScale``, ``rejectedAttempts``, ``warnings``),
        seconds of packing, compiling and refitting, and a classifier's ``validationCurve``.
    model : FactorizationMachineModel, optional
        The trained model, for ``evaluate``; set in ``model.summary``.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any]
    model: EvaluateMethods | None = field(default=None, compare=False)

    @property
    def history(self) -> pd.DataFrame:
        """Return a pandas DataFrame with one row per epoch."""
        return pd.DataFrame(self.rows)

    @property
    def objectiveHistory(self) -> list[float]:
        """Return the mean training loss of each epoch, before each update or by each draw."""
        return [row["trainLoss"] for row in self.rows]

    @property
    def totalIterations(self) -> int:
        """Return the number of epochs run."""
        return len(self.rows)

    @property
    def bestEpoch(self) -> int:
        """Return the number, from 0, of the epoch whose parameters the model has."""
        return int(self.facts["bestEpoch"])

    @property
    def baseline(self) -> float | None:
        """Return the validation loss of the best constant, to compare ``validationLoss`` with.

        That of the constant that fits the training rows best: their mean label. None without
        validation rows, and in models of earlier versions.
        """
        return self.facts.get("constantLoss")

    @property
    def linearLoss(self) -> float | None:
        """Return the validation loss of the best epoch's model without its factors.

        When its ``validationMetric`` is better than that of the whole model by more than chance,
        the model is kept without factors, and a warning says so: ``history`` then has the metrics
        of the whole model, and ``evaluate`` those of the one kept. None without validation rows or
        linear weights, and in models of earlier versions.
        """
        return self.facts.get("linearLoss")

    @property
    def race(self) -> pd.DataFrame:
        """Return the learning rates that were tried before the training, a row a candidate.

        Columns ``biasLr``, ``linearLr``, ``factorsLr``, ``epochs`` (trained in the race),
        ``value`` (best validation metric, NaN where it diverged or is undefined) and
        ``chosen``. Empty where the caller set all three or no rows were held out.
        """
        columns = ["biasLr", "linearLr", "factorsLr", "epochs", "value", "chosen"]
        frame = pd.DataFrame(self.facts.get("race", []), columns=columns)  # older models have none
        return frame.astype({"value": float})

    @property
    def solvers(self) -> pd.DataFrame:
        """Return how the solvers did that ``solver="auto"`` tried, a row each.

        Columns ``solver``, ``value`` (validation metric), ``loss`` (validation loss), ``seconds``
        and ``chosen``. Empty where one alone was trained.
        """
        columns = ["solver", "value", "loss", "seconds", "chosen"]
        return pd.DataFrame(self.facts.get("solvers", []), columns=columns)

    @property
    def warnings(self) -> list[str]:
        """Return the warnings about the data and about rollbacks."""
        return list(self.facts["warnings"])

    @property
    def roc(self) -> pd.DataFrame | None:
        """Return the best epoch's ROC on the validation rows: FPR, TPR, threshold.

        At most 201 points. None for a regressor, or without validation.
        """
        groups = self._groups()
        return None if groups is None else pd.DataFrame(groups.roc())

    @property
    def pr(self) -> pd.DataFrame | None:
        """Return the best epoch's recall, precision and threshold on the validation rows."""
        groups = self._groups()
        return None if groups is None else pd.DataFrame(groups.precision_recall())

    @property
    def calibration(self) -> pd.DataFrame | None:
        """Return mean score, rate of label 1 and weight of groups of validation rows."""
        groups = self._groups()
        if groups is None:
            return None
        return pd.DataFrame(groups.equal_weights(CALIBRATION_GROUPS).calibration())

    @property
    def running(self) -> list[dict[str, Any]]:
        """Return what SageMaker's algorithm would log of each epoch.

        After a training with ``sageMakerTraining`` one dict per epoch with ``epoch``,
        ``rows``, ``seconds`` (of arithmetic), ``metrics`` and ``batches``; otherwise an
        empty list.
        """
        return list(self.facts.get("running", []))

    def evaluate(self, dataset: DataFrame) -> FMEvaluation:
        """Measure the model on rows with labels, as ``model.evaluate(dataset)`` does.

        Parameters
        ----------
        dataset : DataFrame

        Raises
        ------
        InvalidColumnError, InvalidDataError
        SparkFMError
            For a summary without a model.
        """
        if self.model is None:
            raise SparkFMError(
                "This summary has no model to measure: take the one of model.summary, or call "
                "model.evaluate(df)."
            )
        return self.model.evaluate(dataset)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for the model's metadata."""
        return {"rows": self.rows, "facts": self.facts}

    def plot(self, path: str | None = None) -> Any:
        """Draw the training; needs no data, and works for loaded models too.

        Losses by epoch; of a classifier also ROC, precision-recall and calibration on the
        validation rows at the best epoch, of a regressor the metrics by epoch.

        Parameters
        ----------
        path : str, optional
            File to save the picture to; the suffix gives the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib: install ``spark-fm[plot]``.
        """
        history, best = self.history, self.bestEpoch
        groups = self._groups()
        if groups is not None:
            figure, axes = new_figure(2, 2)
            values = self.rows[best]
            calibration = groups.equal_weights(CALIBRATION_GROUPS).calibration()
            draw_roc(axes[1], groups.roc(), values["validation_roc_auc"])
            draw_precision_recall(axes[2], groups.precision_recall(), values["validation_pr_auc"])
            draw_calibration(axes[3], calibration)
            figure.suptitle(f"Training, and epoch {best} on the validation rows")
        elif "validation_rmse" in history:
            figure, axes = new_figure(1, 3)
            draw_errors(axes[1], history, best)
            draw_r2(axes[2], history, best)
        else:
            figure, axes = new_figure()
        draw_losses(axes[0], history, best, constant=self.baseline, linear=self.linearLoss)
        return finish(figure, path)

    def _groups(self) -> ScoreGroups | None:
        curve = self.facts.get("validationCurve")  # older models have none
        return None if curve is None else ScoreGroups.from_dict(curve)

    @property
    def quality(self) -> str:
        """Return how good the model was on the held-out rows, in a sentence."""
        values = self.rows[self.bestEpoch]
        if "validationLoss" not in values:
            return "No rows were held out: how good the model is, model.evaluate(df) tells."
        kept = self.facts.get("linearKept")
        loss = self.linearLoss if kept and self.linearLoss is not None else values["validationLoss"]
        kind = "squared error" if "validation_rmse" in values else "log loss"
        return against_constant(f"On held-out rows {kind}", loss, self.baseline)

    def _repr_html_(self) -> str:
        """Show in a notebook how the training went, and what to do next."""
        return card(
            "Training", self.quality, self._facts(), warnings=self.warnings,
            advice={
                "summary.plot()": "shows losses by epoch and, of a classifier, its curves",
                "summary.history": "has a row for each epoch",
                "model.evaluate(test)": "measures the model on rows it has not seen",
            },
        )  # fmt: skip

    def _facts(self) -> dict[str, object]:
        """Return what the model was trained on and how, for readers."""
        facts, values = self.facts, self.rows[self.bestEpoch]
        shown: dict[str, object] = {
            name.removeprefix("validation_"): value
            for name, value in values.items()
            if name.startswith("validation_")
        }
        refit = ", then all rows" if facts["refit"] else ""
        return shown | {
            "epochs": f"{self.totalIterations}, the best is {self.bestEpoch}{refit}",
            "rows": facts["numRows"],
            "rows skipped": facts["skippedRows"],
            "features seen": facts["numFeaturesSeen"],
            "seconds": round(facts["totalSeconds"], 1),
        }

    def __repr__(self) -> str:
        """Show the main figures."""
        facts = self.facts
        again = facts.get("refitEpochs", self.bestEpoch + 1)  # older models have no such fact
        refit = f", refit on all rows for {again} epochs" if facts["refit"] else ""
        solver = "by Gibbs sampling, " if facts.get("solver") == "gibbs" else ""
        losses = ""
        if self.baseline is not None and "validationLoss" in self.history:
            found = self.history["validationLoss"].iloc[self.bestEpoch]
            linear = "" if self.linearLoss is None else f", linear part: {self.linearLoss:.6g}"
            kept = ", kept" if self.facts.get("linearKept") else ""
            losses = f"validation loss {found:.6g} (constant: {self.baseline:.6g}{linear}{kept}), "
        return (
            f"FMTrainingSummary({solver}{self.totalIterations} epochs, best is epoch "
            f"{self.bestEpoch}{refit}, {losses}"
            f"{facts['numRows']} rows, {facts['skippedRows']} skipped, "
            f"{facts['numFeaturesSeen']} features, {facts['numWorkers']} worker(s), "
            f"{facts['totalSeconds']:.1f} s)"
        )
