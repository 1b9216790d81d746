"""Stop a training by the metric that matters: here the area under the ROC curve.

Trains on UCI Adult until the area has not improved for five epochs, with the validation rows
marked by a column, prints the curve and plots it. Run: ``python -m examples.early_stopping``.
"""

from __future__ import annotations

import argparse

from pyspark.sql import functions as F

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", help="plot the summary to this file, such as out.png")
    arguments = parser.parse_args()
    spark = local_session("local[*]")
    train, test = datasets.a9a(spark)
    # Any column can select the validation rows: by user, by date, or as here by hash.
    marked = train.withColumn("is_validation", F.abs(F.hash("features", "label")) % 10 == 0)
    machine = FactorizationMachine(
        numFactors=8, epochs=100, seed=7, validationIndicatorCol="is_validation",
        validationMetric="roc_auc", patience=5, tol=1e-4,
    )  # fmt: skip
    model = machine.fit(marked)

    summary = model.summary
    columns = ["epoch", "trainLoss", "validationLoss", "validation_roc_auc"]
    print(summary.history[columns].to_string(index=False, float_format="%.4f"))
    print(
        f"\nstopped after {summary.totalIterations} of {machine.getEpochs()} epochs; the model is "
        f"that of epoch {summary.bestEpoch}"
    )
    print(f"on held-out rows: {model.evaluate(test)}")
    if arguments.plot:
        summary.plot(arguments.plot)
    spark.stop()


if __name__ == "__main__":
    main()
