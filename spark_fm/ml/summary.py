"""What a training did, epoch by epoch; driver only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True, slots=True)
class FMTrainingSummary:
    """Summary of a training, kept with the model.

    Parameters
    ----------
    rows : list of dict
        One an epoch: losses and metrics, rows per second, seconds by phase, step scale.
    facts : dict
        Rows, features, skipped rows, partitions, averagings, best epoch, what the
        safety net did (``warnings``), seconds of packing, compiling and refitting.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def history(self) -> pd.DataFrame:
        """Return a pandas DataFrame with one row an epoch."""
        return pd.DataFrame(self.rows)

    @property
    def objectiveHistory(self) -> list[float]:
        """Return the mean training loss of each epoch, taken before each update."""
        return [row["trainLoss"] for row in self.rows]

    @property
    def totalIterations(self) -> int:
        """Return the number of epochs that were run."""
        return len(self.rows)

    @property
    def bestEpoch(self) -> int:
        """Return the epoch, from 0, that the model comes from."""
        return int(self.facts["bestEpoch"])

    @property
    def warnings(self) -> list[str]:
        """Return what the statistics pass and the safety net had to say."""
        return list(self.facts["warnings"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for the model's metadata."""
        return {"rows": self.rows, "facts": self.facts}

    def plot(self, path: str | None = None) -> Any:
        """Draw training and validation loss by epoch.

        Parameters
        ----------
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
        history = self.history
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        epochs = history["epoch"]
        axes.plot(epochs, history["trainLoss"], "o-", ms=3, label="training, before each update")
        if "validationLoss" in history:
            axes.plot(epochs, history["validationLoss"], "o-", ms=3, label="validation")
            axes.axvline(self.bestEpoch, ls=":", c="gray", label=f"best: {self.bestEpoch}")
        axes.set(xlabel="epoch", ylabel="mean loss", title="Loss by epoch")
        axes.legend()
        axes.grid(alpha=0.3)
        if path is not None:
            figure.savefig(path, dpi=144)
        return figure

    def __repr__(self) -> str:
        """Show the main figures."""
        facts = self.facts
        refit = f", refit on all rows for {self.bestEpoch + 1} epochs" if facts["refit"] else ""
        return (
            f"FMTrainingSummary({self.totalIterations} epochs, best is epoch {self.bestEpoch}"
            f"{refit}, "
            f"{facts['numRows']} rows, {facts['skippedRows']} skipped, "
            f"{facts['numFeaturesSeen']} features, {facts['numWorkers']} worker(s), "
            f"{facts['totalSeconds']:.1f} s)"
        )
