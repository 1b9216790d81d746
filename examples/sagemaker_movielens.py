"""Predict whether a user likes a film (rating 4 or 5): SageMaker's MovieLens workshop.

One-hot users and films, k=64, mini-batches of 1,000, 100 epochs over rows in a random order;
trained once as SageMaker does and once with our defaults, next to what AWS published
(aws-samples/amazon-sagemaker-architecting-for-ml, Recommendation-System-FM-KNN.ipynb).
``SPARK_FM_DATA`` names the folder with ``ml-100k``. Run:
``python -m examples.sagemaker_movielens``.
"""

from __future__ import annotations

import argparse

import numpy as np

from examples.real_sets import Rows, ml100k_binary
from examples.sagemaker_table import evaluations

HYPERPARAMETERS = {
    "feature_dim": "2625", "num_factors": "64", "predictor_type": "binary_classifier",
    "mini_batch_size": "1000", "epochs": "100",
}  # fmt: skip
PUBLISHED = {"logloss": 0.57852, "accuracy": 0.69311, "f1": 0.73362}


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run each")
    seeds = parser.parse_args().seeds
    split = ml100k_binary()
    order = np.random.default_rng(0).permutation(len(split.train.y))
    train = Rows(split.train.X[order], split.train.y[order])
    columns = {
        f"{heading}, seed {seed}": {**params, "seed": seed}
        for heading, params in (("as SageMaker", {"sagemaker": True}), ("our defaults", {}))
        for seed in seeds
    }
    results = evaluations(HYPERPARAMETERS, train, split.test, dense=False, columns=columns)
    metrics = {"published": PUBLISHED} | {name: result.metrics for name, result in results.items()}
    print(f"{'':22}  log loss  accuracy      F1")
    for heading, row in metrics.items():
        print(f"{heading:22}  {row['logloss']:8.4f}  {row['accuracy']:8.4f}  {row['f1']:6.4f}")


if __name__ == "__main__":
    main()
