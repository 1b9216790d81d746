"""Keep a model up to date: continue training as new rows arrive, instead of starting over.

Trains on the first half of UCI Adult, continues with the second half for a few epochs, and
compares that with the old model and with a new one from the second half alone. Finally it
shows that a training whose state was kept resumes bit for bit.
Run: ``python -m examples.warm_start``.
"""

from __future__ import annotations

import numpy as np

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets


def main() -> None:
    """Run the example."""
    spark = local_session("local[*]")
    train, test = datasets.a9a(spark)
    old, new = (half.cache() for half in train.randomSplit([0.5, 0.5], seed=7))
    test = test.cache()

    machine = FactorizationMachine(numFactors=8, seed=7)
    first = machine.fit(old)
    alone = machine.fit(new)
    # Smaller learning rates: the model has nearly converged.
    updated = machine.setEpochs(5).setLinearLr(0.05).setFactorsLr(0.05).fit(new, warmStart=first)
    print("log loss on held-out rows")
    for name, model in (
        ("first half", first),
        ("second half alone", alone),
        ("first half, continued with the second", updated),
    ):
        epochs = model.summary.totalIterations
        print(f"  {name:<38} {model.evaluate(test).metrics['logloss']:.4f}  ({epochs} epochs)")

    keeping = FactorizationMachine(
        numFactors=8, seed=7, epochs=5, patience=0, keepTrainingState=True
    )
    five = keeping.fit(old)
    five_more = keeping.fit(old, warmStart=five)
    ten = keeping.setEpochs(10).fit(old)
    same = np.array_equal(five_more.weights.table, ten.weights.table)
    print(f"\n5 epochs and 5 more equal 10 epochs, bit for bit: {same}")
    spark.stop()


if __name__ == "__main__":
    main()
