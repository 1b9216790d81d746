"""What other libraries call our Params: for messages to whoever comes from there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spark_fm.errors import did_you_mean

_RATES = "biasLr, linearLr and factorsLr, or leave them unset: held-out rows choose them"
_DECAYS = "linearWd and factorsWd, the decay of each update"
# By what to use here: the names in MLlib, scikit-learn, xLearn, libFM, LightGBM, LightFM, Keras.
_THEIRS = {
    "numFactors": "factorSize n_factors k dim rank n_components no_components "
    "embedding_dim embedding_size latent_dim latent_factors",
    "epochs": "maxIter n_iter iter iterations n_epochs num_epochs epoch num_iterations "
    "num_iteration num_boost_round num_round n_estimators",
    _RATES: "stepSize lr learning_rate learn_rate eta eta0 learning_rate_init alpha",
    _DECAYS: "regParam reg regular lambda reg_lambda lambda_l2 l2 l2_reg reg_l2 weight_decay "
    "lambda_v lambda_w beta user_alpha item_alpha",
    "factorsInitSigma": "initStd init_std init_stdev stdev init_stddev sigma",
    "useBias": "fitIntercept intercept use_intercept",
    "useLinear": "fitLinear",
    "miniBatchSize, in rows": "miniBatchFraction batch_size",
    "seed": "random_state random_seed rng",
    'predictorType, "binary_classifier" or "regressor"': "task objective loss application "
    "family problem_type",
    "validationMetric": "metric metrics eval_metric scoring",
    "patience": "early_stopping early_stopping_rounds early_stopping_round stop_window "
    "n_iter_no_change early_stopping_patience",
    "numWorkers": "n_jobs num_threads nthread n_threads num_machines parallelism",
    "weightCol": "sample_weight weights weight weight_column",
    "featureDim": "num_features n_features input_dim",
    "threshold = b / (a + b), for thresholds [a, b]": "thresholds",
    "optimizer": "opt method algorithm",
    "fit(df, warmStart=model)": "warm_start init_model pre_model",
    "the logger spark_fm": "verbose verbosity quiet silent",
}


def _key(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()


_BY_KEY = {_key(name): ours for ours, names in _THEIRS.items() for name in names.split()}


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Return what to use in place of a name, or nothing where nothing is near."""
    known = list(known)
    ours = _BY_KEY.get(_key(name))
    if ours is None or _key(name) in map(_key, known):
        return did_you_mean(name, known)
    return f"use {ours}."
