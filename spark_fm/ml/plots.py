"""Plots of trainings, strengths and searches; matplotlib only where one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from spark_fm.ml.search_space import Choices, Dimension, SearchSpace
from spark_fm.ml.trials import COMPLETE, PRUNED, Trial, best_trial

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


COLUMNS = 4
# State -> colour, marker and size. Blue and orange differ for every kind of sight.
_LOOKS = {COMPLETE: ("#1f77b4", "o", 26), PRUNED: ("#ff7f0e", "v", 20)}
_BEST = {"c": "#d62728", "marker": "*", "s": 150, "zorder": 5, "edgecolors": "white"}


def plot_trials(
    trials: Sequence[Trial], space: SearchSpace, metric: str, path: str | None = None
) -> Any:
    """Draw the trials that have a value.

    Parameters
    ----------
    trials : sequence of Trial
    space : SearchSpace
    metric : str
        Name of the metric that decides.
    path : str, optional
        Also save the picture there; the suffix gives the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib: install ``spark-fm[plot]``.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError("Plots need matplotlib: pip install 'spark-fm[plot]'.") from err
    names = list(space.dimensions)
    n_rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(12, 4.0 + 2.6 * n_rows), layout="constrained")
    grid = figure.add_gridspec(1 + n_rows, COLUMNS, height_ratios=[1.4, *[1.0] * n_rows])
    top = figure.add_subplot(grid[0, :])
    limits = _limits(trials)
    _by_number(top, trials, metric, limits)
    for place, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS])
        _by_param(axes, trials, name, space.dimensions[name], limits)
        if place % COLUMNS == 0:
            axes.set_ylabel(metric)
        else:
            axes.tick_params(labelleft=False)
    if path is not None:
        figure.savefig(path, dpi=144)
    return figure


def _limits(trials: Sequence[Trial]) -> tuple[float, float]:
    """Return the drawn stretch of the metric: all good values; bad ones lie on the edge."""
    values = np.array([trial.value for trial in trials])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    sign = -1.0 if trials[0].larger_is_better else 1.0
    costs = np.sort(sign * values)
    most = np.quantile(costs, 0.75)
    worst = min(costs[-1], most + 0.5 * (most - costs[0]))
    room = 0.06 * max(worst - costs[0], 1e-9 + 1e-3 * abs(worst))
    low, high = sorted((sign * (costs[0] - room), sign * (worst + room)))
    return float(low), float(high)


def _by_number(
    axes: Any, trials: Sequence[Trial], metric: str, limits: tuple[float, float]
) -> None:
    _points(axes, trials, [trial.number for trial in trials], limits)
    record, records = math.inf, []
    for trial in trials:
        record = min(record, trial.cost if trial.state == COMPLETE else math.inf)
        records.append(record)
    if trials:
        sign = -1.0 if trials[0].larger_is_better else 1.0
        axes.step(
            [trial.number for trial in trials], [sign * cost for cost in records], where="post",
            c="#d62728", lw=1.2, label="best so far", zorder=1,
        )  # fmt: skip
        start = trials[0].value
        if math.isfinite(start):
            label = f"trial 0, the estimator as given: {start:.4g}"
            axes.axhline(start, ls="--", lw=1, c="gray", label=label, zorder=0)
    better = "higher" if trials and trials[0].larger_is_better else "lower"
    axes.set(xlabel="trial", ylabel=f"validation {metric}", ylim=limits)
    axes.set_title(f"Best validation {metric} of each trial ({better} is better)", pad=30)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=9, frameon=False)


def _by_param(
    axes: Any, trials: Sequence[Trial], name: str, dimension: Dimension,
    limits: tuple[float, float],
) -> None:  # fmt: skip
    having = [trial for trial in trials if name in trial.params]
    values = [trial.params[name] for trial in having]
    if isinstance(dimension, Choices):
        shown = [*dimension.values, *(v for v in values if v not in dimension.values)]
        shown = sorted(set(shown)) if dimension.ordered else list(dict.fromkeys(shown))
        # Side by side, so that trials of one choice do not hide each other.
        spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(values))
        xs = [shown.index(value) + offset for value, offset in zip(values, spread, strict=True)]
        axes.set_xticks(range(len(shown)), [str(value) for value in shown])
        axes.set_xlim(-0.5, len(shown) - 0.5)
    else:
        xs = values
        if dimension.log:
            _logarithmic(axes, values)
    _points(axes, having, xs, limits)
    axes.set_ylim(limits)
    axes.set_title(name, fontsize=10)
    axes.grid(alpha=0.3)


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Scale the x axis by logarithms, with plain numbers, few enough not to touch."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    decades = math.log10(max(values, default=1.0) / min(values, default=1.0))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _points(
    axes: Any, trials: Sequence[Trial], xs: Sequence[float], limits: tuple[float, float]
) -> None:
    """Draw trials by state; values beyond the limits lie on the edge, hollow."""
    best = best_trial(trials)
    for state, (colour, marker, size) in _LOOKS.items():
        chosen = [
            (x, trial.value) for x, trial in zip(xs, trials, strict=True)
            if trial.state == state and math.isfinite(trial.value)
        ]  # fmt: skip
        for inside in (True, False):
            part = [(x, y) for x, y in chosen if (limits[0] <= y <= limits[1]) == inside]
            if not part:
                continue
            x, y = np.array(part, np.float64).T
            axes.scatter(
                x, y.clip(*limits), s=size, marker=marker, lw=1, edgecolors=colour, zorder=3,
                facecolors=colour if inside else "none", clip_on=inside,
                label=state if inside else f"{state}, beyond the axis",
            )  # fmt: skip
    if best is not None:
        x = xs[list(trials).index(best)]
        axes.scatter([x], [best.value], label=f"best: {best.value:.4g}, trial {best.number}",
                     **_BEST)  # fmt: skip
    failed = [x for x, trial in zip(xs, trials, strict=True) if not math.isfinite(trial.value)]
    if failed:
        edge = limits[0] if trials[0].larger_is_better else limits[1]
        axes.scatter(failed, [edge] * len(failed), marker="x", c="black", s=24, clip_on=False,
                     label="no model", zorder=3)  # fmt: skip
