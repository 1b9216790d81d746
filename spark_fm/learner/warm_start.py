"""Begin a training where a model stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spark_fm.learner.snapshot import Snapshot
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import TrainState
from spark_fm.learner.units import Units
from spark_fm.learner.weights import FMWeights


@dataclass(frozen=True, eq=False)
class WarmStart:
    """A model to go on from.

    Parameters
    ----------
    weights : FMWeights
    snapshot : Snapshot or None
        The training that made it, where that was kept.
    """

    weights: FMWeights
    snapshot: Snapshot | None = None


def warm_state_inplace(
    state: TrainState,
    start: WarmStart,
    spec: TrainSpec,
    *,
    ids: np.ndarray[tuple[int], np.dtype[np.int32]] | None,
    units: Units,
) -> None:
    """Change a first state in place: the model's features get the model's parameters.

    Parameters
    ----------
    state : TrainState
        As drawn for a training of its own; features that the model lacks keep that.
    start : WarmStart
        Every feature of it is in the table.
    spec : TrainSpec
    ids : ndarray of shape (n_features,), int32, or None
        Sorted feature ids of the state's rows; None when ids are rows.
    units : Units

    Notes
    -----
    With labels divided by s, the model of w0, w and V has w0 / s, w / s and V / sqrt(s).
    Where the training of the model was kept, with the same optimizer, its statistics are
    taken over too; otherwise they begin anew. O(n_features k).
    """
    weights, k, scale = start.weights, spec.k, units.label
    known = weights.features
    rows = np.arange(weights.feature_dim) if known is None else known
    if ids is not None:
        rows = np.searchsorted(ids, rows)
    state.rows[rows, :k] = weights.factors / np.float32(math.sqrt(scale))
    if spec.use_linear:
        state.rows[rows, k] = weights.linear / np.float32(scale)
    if spec.use_bias:
        state.bias[0] = weights.bias / scale
    snapshot = start.snapshot
    if snapshot is None or snapshot.layout != state.layout:
        return
    kept = snapshot.ids if ids is None else np.searchsorted(ids, snapshot.ids)
    columns = slice(k + 1, state.layout.n_exchanged)
    state.rows[kept, columns] = snapshot.arrays["state"][:, columns]
    state.bias[1:] = snapshot.facts["run"]["bias"][1:]
