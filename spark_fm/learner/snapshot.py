"""All that a training needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.run import TrainRun
from spark_fm.learner.spec import Optimizer
from spark_fm.learner.state import Layout
from spark_fm.learner.units import Units


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training between two epochs, as plain data that can be kept on disk.

    Parameters
    ----------
    facts : dict
        JSON-able: where the run stands and what it was made of.
    arrays : dict of str to ndarray
        ``state`` of shape (n, m), ``average`` and ``best`` of shape (n, k + 1), all
        float32; ``ids`` of shape (n,), int32, where the table holds only some features.
    """

    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @classmethod
    def of(
        cls,
        run: TrainRun,
        *,
        fingerprint: str,
        metric: str,
        units: Units,
        ids: NDArray[np.int32] | None,
        history: list[dict[str, Any]],
    ) -> Snapshot:
        """Copy a run out.

        Parameters
        ----------
        run : TrainRun
        fingerprint : str
            Of the data it trains on.
        metric : str
            Validation metric that decides.
        units : Units
        ids : ndarray of shape (n,), int32, or None
        history : list of dict
            The summary's rows so far.
        """
        run_facts, arrays = run.to_arrays()
        if ids is not None:
            arrays["ids"] = ids
        facts = {
            "run": run_facts,
            "k": run.state.layout.k,
            "optimizer": run.state.layout.optimizer,
            "fingerprint": fingerprint,
            "metric": metric,
            "units": [units.label, units.weight],
            "history": list(history),
        }
        return cls(facts, arrays)

    @property
    def layout(self) -> Layout:
        """Columns of the state."""
        optimizer: Optimizer = self.facts["optimizer"]
        return Layout(int(self.facts["k"]), optimizer)

    @property
    def ids(self) -> NDArray[np.int32]:
        """Sorted feature ids of the table's rows."""
        rows = len(self.arrays["state"])
        return self.arrays.get("ids", np.arange(rows, dtype=np.int32))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The summary's rows up to here."""
        return list(self.facts["history"])

    def run(self) -> TrainRun:
        """Return the run, independent of this object."""
        return TrainRun.from_arrays(self.layout, self.facts["run"], self.arrays)

    def continues(
        self, *, fingerprint: str, layout: Layout, metric: str, units: Units, n_features: int
    ) -> bool:
        """Tell whether a training with these facts is this one, going on."""
        return (
            self.facts["fingerprint"] == fingerprint
            and self.layout == layout
            and self.facts["metric"] == metric
            and self.facts["units"] == [units.label, units.weight]
            and len(self.arrays["state"]) == n_features
        )
