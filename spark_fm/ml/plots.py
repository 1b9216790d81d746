"""Pictures of losses, curves, calibration and residuals on matplotlib axes; driver only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

# Columns by name: a pandas DataFrame or a dict of arrays.
Columns = Any
_GUIDE = {"ls": "--", "lw": 1, "c": "gray"}


def new_figure(n_rows: int = 1, n_columns: int = 1) -> tuple[Any, list[Any]]:
    """Return a matplotlib Figure and its axes in reading order.

    Raises
    ------
    ImportError
        Without matplotlib: install ``spark-fm[plot]``.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError("Plots need matplotlib: pip install 'spark-fm[plot]'.") from err
    width = 7.0 if n_columns == 1 else 5.2 * n_columns
    figure = Figure(figsize=(width, 4.2 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    return figure, list(axes.ravel())


def finish(figure: Any, path: str | None) -> Any:
    """Save the figure where there is a path, and return it."""
    if path is not None:
        figure.savefig(path, dpi=144)
    return figure


def draw_losses(axes: Any, history: pd.DataFrame, best_epoch: int) -> None:
    """Draw training and validation loss by epoch."""
    epochs = history["epoch"]
    axes.plot(epochs, history["trainLoss"], "o-", ms=3, label="training, before each update")
    if "validationLoss" in history:
        axes.plot(epochs, history["validationLoss"], "o-", ms=3, label="validation")
        _mark_best(axes, best_epoch)
    _dress(axes, "Loss by epoch", "epoch", "mean loss")


def draw_errors(axes: Any, history: pd.DataFrame, best_epoch: int) -> None:
    """Draw a regressor's validation RMSE and MAE by epoch."""
    for name in ("rmse", "mae"):
        label = name.upper()
        axes.plot(history["epoch"], history[f"validation_{name}"], "o-", ms=3, label=label)
    _mark_best(axes, best_epoch)
    _dress(axes, "Validation errors by epoch", "epoch", "error, in units of the label")


def draw_r2(axes: Any, history: pd.DataFrame, best_epoch: int) -> None:
    """Draw a regressor's validation R2 by epoch."""
    axes.plot(history["epoch"], history["validation_r2"], "o-", ms=3, c="tab:green", label="R²")
    _mark_best(axes, best_epoch)
    _dress(axes, "Validation R² by epoch", "epoch", "R²")


def draw_roc(axes: Any, roc: Columns, area: float) -> None:
    """Draw a ROC curve, as ``ScoreGroups.roc`` gives it."""
    axes.plot(roc["FPR"], roc["TPR"], label=f"model, area {area:.4f}")
    axes.plot([0, 1], [0, 1], **_GUIDE, label="chance")
    _dress(axes, "ROC", "false positive rate", "true positive rate", square=True)


def draw_precision_recall(axes: Any, pr: Columns, area: float) -> None:
    """Draw a precision-recall curve, as ``ScoreGroups.precision_recall`` gives it."""
    share = np.asarray(pr["precision"])[-1]
    label = f"model, average precision {area:.4f}"
    axes.plot(pr["recall"], pr["precision"], label=label)
    axes.axhline(share, **_GUIDE, label=f"chance, {share:.4f}")
    _dress(axes, "Precision and recall", "recall", "precision", square=True)


def draw_calibration(axes: Any, calibration: Columns) -> None:
    """Draw the share of label 1 against the mean score, by groups of rows."""
    score, rate = calibration["score"], calibration["rate"]
    top = min(1.0, 1.05 * float(np.nanmax([score.max(), rate.max(), 1e-12])))
    axes.plot(score, rate, "o-", ms=4, label="groups of equal weight")
    axes.plot([0, top], [0, top], **_GUIDE, label="perfect")
    _dress(axes, "Calibration", "mean score", "share of label 1")


def draw_fit(axes: Any, calibration: Columns) -> None:
    """Draw a regressor's mean label against its mean score, by groups of rows."""
    score, label = calibration["score"], calibration["label"]
    ends = [min(score.min(), label.min()), max(score.max(), label.max())]
    axes.plot(score, label, "o-", ms=4, label="groups of equal weight")
    axes.plot(ends, ends, **_GUIDE, label="perfect")
    _dress(axes, "Predicted against actual", "mean score", "mean label")


def draw_residuals(axes: Any, residuals: Columns) -> None:
    """Draw the histogram of score minus label."""
    width = residuals["high"] - residuals["low"]
    axes.bar(residuals["low"], residuals["weight"], width=width, align="edge", label="rows")
    axes.axvline(0, **_GUIDE, label="no error")
    _dress(axes, "Residuals", "score - label", "weight of rows")


def _mark_best(axes: Any, epoch: int) -> None:
    axes.axvline(epoch, ls=":", c="gray", label=f"best epoch: {epoch}")


def _dress(axes: Any, title: str, x: str, y: str, *, square: bool = False) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    if x == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if square:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
