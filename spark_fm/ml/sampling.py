"""Where the trials of a search lie: drawn at random, or proposed by TPE; driver only.

A proposal depends on the seed, its number and the trials of earlier rounds alone, so a
search that was interrupted goes on with the trials that it would have had.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from spark_fm.ml.search_space import Choices, SearchSpace
from spark_fm.ml.trials import COMPLETE, Trial

Places = dict[str, float]
Sampler = Callable[[SearchSpace, int, Sequence[int], Sequence[Trial]], list[Places]]


def random_places(
    space: SearchSpace, seed: int, numbers: Sequence[int], earlier: Sequence[Trial]
) -> list[Places]:
    """Draw evenly and independently; ``earlier`` trials change nothing.

    Parameters
    ----------
    space : SearchSpace
    seed : int
    numbers : sequence of int
        Of the trials to draw.
    earlier : sequence of Trial
    """
    return [
        {name: float(rng.random()) for name in space.dimensions}
        for rng in (np.random.default_rng(_words(seed, number)) for number in numbers)
    ]


def tpe_places(
    space: SearchSpace, seed: int, numbers: Sequence[int], earlier: Sequence[Trial]
) -> list[Places]:
    """Propose by Optuna's tree-structured Parzen estimator [1]_, the first ten at random.

    Parameters
    ----------
    space : SearchSpace
    seed : int
    numbers : sequence of int
        Of the trials to propose, which do not know of each other's results.
    earlier : sequence of Trial
        All trials before these.

    Raises
    ------
    ImportError
        Without Optuna: install ``spark-fm[tune]``.

    References
    ----------
    .. [1] J. Bergstra, R. Bardenet, Y. Bengio, B. Kegl, "Algorithms for Hyper-Parameter
       Optimization", NeurIPS 2011, section 4.
    """
    try:
        import optuna
    except ImportError as err:
        raise ImportError("The sampler 'tpe' needs Optuna: pip install 'spark-fm[tune]'.") from err
    distributions: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Choices) and not dimension.ordered:
            every = [dimension.place(value) for value in dimension.values]
            distributions[name] = optuna.distributions.CategoricalDistribution(every)
        else:
            distributions[name] = optuna.distributions.FloatDistribution(0.0, 1.0)
    with _quiet(optuna):
        words = _words(seed, numbers[0]).generate_state(1)
        sampler = optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        for trial in earlier:
            study.add_trial(_told(optuna, trial, space, distributions))
        return [dict(study.ask(distributions).params) for _ in numbers]


SAMPLERS: dict[str, Sampler] = {"random": random_places, "tpe": tpe_places}


def _told(
    optuna: Any, trial: Trial, space: SearchSpace, distributions: dict[str, Any]
) -> Any:  # fmt: skip
    """Return a trial in Optuna's terms: it ranks those that were stopped last."""
    places = dict(trial.places)
    for name, dimension in space.dimensions.items():
        if name in places and isinstance(dimension, Choices):
            places[name] = dimension.place(dimension.at(places[name]))
    complete = trial.state == COMPLETE
    reached = {} if complete else {e: c for e, c in enumerate(trial.costs) if np.isfinite(c)}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
        value=trial.cost if complete else None,
        params=places,
        distributions={name: distributions[name] for name in places},
        intermediate_values=reached,
    )


def _words(seed: int, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, number])


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna from telling of a study that lives for a moment."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Optuna 4 calls the constant liar experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
