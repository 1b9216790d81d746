"""When a trial is hopeless by its validation curve; plain numbers, no Spark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

GRACE_EPOCHS = 6
FEWEST_RIVALS = 3


def is_hopeless(costs: Sequence[float], rivals: Sequence[Sequence[float]]) -> bool:
    """Tell whether a trial is to be stopped: the median stopping rule [1]_.

    Its least cost so far is above the median of what the trials of earlier rounds had
    reached by the same epoch, or by their end where that came sooner. Trials that were
    stopped count too: a median of the survivors alone would rise until it stopped good
    ones.

    Parameters
    ----------
    costs : sequence of float
        Of the trial after each epoch, small ones better; infinity where undefined.
    rivals : sequence of sequence of float
        Costs of the trials of earlier rounds.

    Returns
    -------
    bool
        False during the first ``GRACE_EPOCHS`` epochs, and with fewer than
        ``FEWEST_RIVALS`` rivals.

    References
    ----------
    .. [1] D. Golovin et al., "Google Vizier: A Service for Black-Box Optimization",
       KDD 2017, section 3.2.2, doi:10.1145/3097983.3098043; here with the best values in
       place of their running means.
    """
    n_epochs = len(costs)
    if n_epochs <= GRACE_EPOCHS or len(rivals) < FEWEST_RIVALS:
        return False
    reached = [min(rival[:n_epochs], default=math.inf) for rival in rivals]
    return min(costs) > median(reached)
