"""Predict whether a digit is a 0: SageMaker's introduction to factorization machines.

784 dense pixels, k=10, mini-batches of 200, one epoch; trained once as SageMaker does and
once with our defaults, with confusion matrices next to the one that AWS published
(github.com/aws/amazon-sagemaker-examples, sm-introduction_to_factorization_machines).
``SPARK_FM_DATA`` names the folder with ``mnist``. Run: ``python -m examples.sagemaker_mnist``.
"""

from __future__ import annotations

from examples.real_sets import mnist0
from examples.sagemaker_table import evaluations

HYPERPARAMETERS = {
    "feature_dim": "784", "num_factors": "10", "predictor_type": "binary_classifier",
    "mini_batch_size": "200",
}  # fmt: skip
PUBLISHED = (951, 29, 165, 8855)


def main() -> None:
    """Run the example."""
    split = mnist0()
    results = evaluations(
        HYPERPARAMETERS, split.train, split.test, dense=True,
        columns={
            "as SageMaker": {"sagemaker": True, "seed": 1},
            "our defaults": {"seed": 1},
        },
    )  # fmt: skip
    counts = {"published": PUBLISHED}
    for heading, result in results.items():
        table = result.confusion.to_numpy()  # label by predicted label
        counts[heading] = (table[1, 1], table[1, 0], table[0, 1], table[0, 0])
    print(f"{'':14}{'TP':>6}{'FN':>6}{'FP':>6}{'TN':>6}  accuracy      F1  log loss")
    for heading, (tp, fn, fp, tn) in counts.items():
        accuracy, f1 = (tp + tn) / (tp + fn + fp + tn), 2 * tp / (2 * tp + fn + fp)
        loss = f"{results[heading].metrics['logloss']:.4f}" if heading in results else "-"
        cells = "".join(f"{count:6.0f}" for count in (tp, fn, fp, tn))
        print(f"{heading:14}{cells}  {accuracy:8.4f}  {f1:6.4f}  {loss:>8}")


if __name__ == "__main__":
    main()
