"""Plots of trainings, evaluations, strengths and searches; matplotlib is imported on use."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spark_fm.formats.files import atomic_write
from spark_fm.ml.search_space import Choices, Dimension, SearchSpace
from spark_fm.ml.trials import COMPLETE, PRUNED, Trial, best_trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns by name: a pandas DataFrame or a dict of arrays.
Columns = Any
CALIBRATION_GROUPS = 20
# Blue and orange, matplotlib's first two, differ for every kind of sight.
_BLUE, _ORANGE, _RED, _PALE = "#1f77b4", "#ff7f0e", "#d62728", "#d9d9d9"
_GUIDE = {"ls": "--", "lw": 1, "c": "gray"}


def empty_figure(width: float, height: float) -> Figure:
    """Return a matplotlib Figure of a size in inches; ImportError says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError("Plots need matplotlib: pip install 'spark-fm[plot]'.") from err
    return Figure(figsize=(width, height), layout="constrained")


def new_figure(n_rows: int = 1, n_columns: int = 1) -> tuple[Figure, list[Any]]:
    """Return a figure and its axes in reading order."""
    width = 7.0 if n_columns == 1 else 5.2 * n_columns
    figure = empty_figure(width, 4.2 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    return figure, list(axes.ravel())


def finish(figure: Figure, path: str | None) -> Figure:
    """Save the figure if a path is given, and return it."""
    if path is not None:
        kind = os.path.splitext(path)[1][1:]
        with atomic_write(path if kind else f"{path}.png") as file:
            figure.savefig(file, dpi=144, format=kind or "png")
    return figure


def draw_losses(
    axes: Any,
    history: pd.DataFrame,
    best_epoch: int,
    *,
    constant: float | None,
    linear: float | None,
) -> None:
    """Draw training and validation loss by epoch, and validation losses of simpler models."""
    epochs = history["epoch"]
    is_sampled = "factorsPrecision" in history
    when = "by each draw" if is_sampled else "before each update"
    axes.plot(epochs, history["trainLoss"], "o-", ms=3, label=f"training, {when}")
    if "validationSampleLoss" in history:
        label = "validation, by each draw"
        axes.plot(epochs, history["validationSampleLoss"], "o-", ms=3, label=label, c="tab:green")
    if "validationLoss" in history:
        label = "validation, mean of the draws" if is_sampled else "validation"
        axes.plot(epochs, history["validationLoss"], "o-", ms=3, label=label, c="tab:orange")
        if constant is not None:
            axes.axhline(constant, **_GUIDE, label="validation, constant")
        if linear is not None:
            axes.axhline(linear, **{**_GUIDE, "ls": ":"}, label="validation, linear part")
        _mark_best(axes, best_epoch)
    _label(axes, "Loss by epoch", "epoch", "mean loss")


def draw_errors(axes: Any, history: pd.DataFrame, best_epoch: int) -> None:
    """Draw a regressor's validation RMSE and MAE by epoch."""
    for name in ("rmse", "mae"):
        label = name.upper()
        axes.plot(history["epoch"], history[f"validation_{name}"], "o-", ms=3, label=label)
    _mark_best(axes, best_epoch)
    _label(axes, "Validation errors by epoch", "epoch", "error, in units of the label")


def draw_r2(axes: Any, history: pd.DataFrame, best_epoch: int) -> None:
    """Draw a regressor's validation R2 by epoch."""
    axes.plot(history["epoch"], history["validation_r2"], "o-", ms=3, c=_BLUE, label="R²")
    _mark_best(axes, best_epoch)
    _label(axes, "Validation R² by epoch", "epoch", "R²")


def draw_roc(axes: Any, roc: Columns, area: float) -> None:
    """Draw a ROC curve, from ``ScoreGroups.roc``."""
    axes.plot(roc["FPR"], roc["TPR"], label=f"model, area {area:.4f}")
    axes.plot([0, 1], [0, 1], **_GUIDE, label="chance")
    _label(axes, "ROC", "false positive rate", "true positive rate", square=True)


def draw_precision_recall(axes: Any, pr: Columns, area: float) -> None:
    """Draw a precision-recall curve, from ``ScoreGroups.precision_recall``."""
    base_rate = np.asarray(pr["precision"])[-1]
    label = f"model, average precision {area:.4f}"
    axes.plot(pr["recall"], pr["precision"], label=label)
    axes.axhline(base_rate, **_GUIDE, label=f"chance, {base_rate:.4f}")
    _label(axes, "Precision and recall", "recall", "precision", square=True)


def draw_calibration(axes: Any, calibration: Columns) -> None:
    """Draw the fraction of label 1 against the mean score, by groups of rows."""
    score, rate = calibration["score"], calibration["rate"]
    top = min(1.0, 1.05 * float(np.nanmax([score.max(), rate.max(), 1e-12])))
    axes.plot(score, rate, "o-", ms=4, label="groups of equal weight")
    axes.plot([0, top], [0, top], **_GUIDE, label="perfect")
    _label(axes, "Calibration", "mean score", "fraction of label 1")


def draw_fit(axes: Any, calibration: Columns) -> None:
    """Draw a regressor's mean label against its mean score, by groups of rows."""
    score, label = calibration["score"], calibration["label"]
    ends = [min(score.min(), label.min()), max(score.max(), label.max())]
    axes.plot(score, label, "o-", ms=4, label="groups of equal weight")
    axes.plot(ends, ends, **_GUIDE, label="perfect")
    _label(axes, "Predicted against actual", "mean score", "mean label")


def draw_residuals(axes: Any, residuals: Columns) -> None:
    """Draw the histogram of score minus label."""
    width = residuals["high"] - residuals["low"]
    axes.bar(residuals["low"], residuals["weight"], width=width, align="edge", label="rows")
    axes.axvline(0, **_GUIDE, label="no error")
    _label(axes, "Residuals", "score - label", "weight of rows")


def _mark_best(axes: Any, epoch: int) -> None:
    axes.axvline(epoch, ls=":", c="gray", label=f"best epoch: {epoch}")


def _label(axes: Any, title: str, x: str, y: str, *, square: bool = False) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    if x == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if square:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()


COLUMNS = 4
# State -> colour, marker and size.
_LOOKS = {COMPLETE: (_BLUE, "o", 26), PRUNED: (_ORANGE, "v", 20)}
_BEST = {"c": _RED, "marker": "*", "s": 150, "zorder": 5, "edgecolors": "white"}


def plot_trials(
    trials: Sequence[Trial], space: SearchSpace, metric: str, path: str | None = None
) -> Figure:
    """Draw the metric of each trial, by trial and against each Param searched."""
    names = list(space.dimensions)
    n_rows = math.ceil(len(names) / COLUMNS)
    figure = empty_figure(12, 4.0 + 2.6 * n_rows)
    grid = figure.add_gridspec(1 + n_rows, COLUMNS, height_ratios=[1.4, *[1.0] * n_rows])
    top = figure.add_subplot(grid[0, :])
    limits = _limits(trials)
    _by_number(top, trials, metric, limits)
    for number, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + number // COLUMNS, number % COLUMNS])
        _by_param(axes, trials, name, space.dimensions[name], limits)
        if number % COLUMNS == 0:
            axes.set_ylabel(metric)
        else:
            axes.tick_params(labelleft=False)
    return finish(figure, path)


def _limits(trials: Sequence[Trial]) -> tuple[float, float]:
    """Return the limits of the metric's axis: all good values; bad ones lie on the edge."""
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
            c=_RED, lw=1.2, label="best so far", zorder=1,
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
        jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(values))
        xs = [shown.index(value) + offset for value, offset in zip(values, jitter, strict=True)]
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
        points = [
            (x, trial.value) for x, trial in zip(xs, trials, strict=True)
            if trial.state == state and math.isfinite(trial.value)
        ]  # fmt: skip
        for inside in (True, False):
            part = [(x, y) for x, y in points if (limits[0] <= y <= limits[1]) == inside]
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


LINEAR = "linear"  # column of the groups' linear strengths
_MOST_LABELED = 10  # groups whose strengths are also written as numbers
_GROUP_UNIT = "mean |sum of contributions|"


def draw_strengths(
    features: pd.DataFrame, groups: pd.DataFrame | None, *, top: int, path: str | None
) -> Figure:
    """Draw the strongest features as bars, and groups, if any, as a heat map."""
    shown = features.head(top)
    height = max(3.4, 1.4 + 0.32 * len(shown), 0 if groups is None else 1.9 + 0.36 * len(groups))
    figure = empty_figure(7 if groups is None else 15, height)
    if groups is None:
        _draw_bars(figure.subplots(), shown)
    else:
        panels = figure.subplots(1, 3, width_ratios=(5, 1.3, 6))
        _draw_bars(panels[0], shown)
        _draw_linear(panels[1], groups)
        _draw_pairs(figure, panels[2], groups)
    return finish(figure, path)


def _draw_bars(axes: Any, shown: pd.DataFrame) -> None:
    rows = np.arange(len(shown))
    labels = shown["name"].where(shown["name"].notna(), shown["feature"].map("feature {}".format))
    axes.barh(rows, shown["total"], 0.82, color=_PALE, label="linear and pairs together")
    axes.barh(rows - 0.18, shown["linear"], 0.3, color=_BLUE, label="linear part")
    axes.barh(rows + 0.18, shown["pairs"], 0.3, color=_ORANGE, label="all its pairs")
    axes.set_yticks(rows, labels)
    axes.invert_yaxis()
    axes.set(xlabel="mean |contribution to the margin|", title="Strongest features")
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_linear(axes: Any, groups: pd.DataFrame) -> None:
    axes.barh(range(len(groups)), groups[LINEAR], 0.6, color=_BLUE)
    axes.set_yticks(range(len(groups)), groups.index)
    axes.set_ylim(len(groups) - 0.5, -0.5)  # as the rows of the heat map beside it
    axes.set(title="Groups: linear", xlabel=_GROUP_UNIT)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_pairs(figure: Any, axes: Any, groups: pd.DataFrame) -> None:
    # Each pair is shown once: the lower triangle repeats the upper one.
    strengths = np.where(np.tri(len(groups), k=-1), np.nan, groups[list(groups.index)])
    image = axes.imshow(strengths, cmap="YlOrBr", vmin=0, aspect="auto")
    if len(groups) <= _MOST_LABELED:
        for i, j in zip(*np.triu_indices(len(groups)), strict=True):
            is_dark = strengths[i, j] > 0.6 * np.nanmax(strengths)
            axes.text(j, i, f"{strengths[i, j]:.2g}", ha="center", va="center", fontsize=8,
                      color="white" if is_dark else "black")  # fmt: skip
    axes.set_xticks(range(len(groups)), groups.index, rotation=40, ha="right")
    axes.set_yticks(range(len(groups)), groups.index)
    axes.spines[:].set_visible(False)
    axes.set_title("Groups: pairs between them, and within")
    figure.colorbar(image, ax=axes, label=_GROUP_UNIT)


def draw_explanation(
    explanation: Any, score: float, *, top: int, width: float = 8.0, path: str | None
) -> Figure:
    """Draw how the parts of one margin add up, from the bias down to the margin."""
    parts = [(_linear_label(part), part["contribution"]) for part in explanation["linear"]]
    parts += [
        (f"{_named(pair, '_a')} with {_named(pair, '_b')}", pair["contribution"])
        for pair in explanation["pairs"]
    ]
    parts.sort(key=lambda part: -abs(part[1]))
    others = explanation["other_linear"] + explanation["other_pairs"]
    others += sum(value for _, value in parts[top:])
    steps = [("bias", explanation["bias"]), *parts[:top], ("all others", others)]
    values = np.array([value for _, value in steps])
    ends = np.cumsum(values)
    figure = empty_figure(width, 1.4 + 0.32 * len(steps))
    axes = figure.subplots()
    rows = np.arange(len(steps))
    colours = np.where(values < 0, _BLUE, _ORANGE)
    axes.barh(rows, values, 0.7, left=ends - values, color=colours)
    axes.vlines(ends[:-1], rows[:-1], rows[1:], color="gray", lw=0.8)  # from each bar to the next
    for row, value in enumerate(values):
        axes.annotate(f"{value:+.3g}", (max(ends[row], ends[row] - value), row), (4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.axvline(float(explanation["margin"]), ls="--", lw=1, c="gray")
    axes.set_yticks(rows, [name for name, _ in steps])
    axes.invert_yaxis()
    low, high = min(0.0, ends.min()), max(0.0, ends.max())
    axes.set_xlim(low - 0.05 * (high - low), high + 0.12 * (high - low) + 1e-9)
    axes.set(
        xlabel="margin", title=f"Score {score:.4g}, of a margin of {explanation['margin']:.4g}"
    )
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return finish(figure, path)


def _named(part: Any, which: str = "") -> str:
    name = part[f"name{which}"]
    return f"feature {part[f'feature{which}']}" if name is None else str(name)


def _linear_label(part: Any) -> str:
    value = part["value"]
    return _named(part) if value == 1 else f"{_named(part)}: {value:.4g}"
