"""Choose hyperparameters by cross-validation: Spark's CrossValidator over a grid.

Each fold packs its rows once and trains the whole grid in shared passes. The metric is the
cross entropy, by SageMaker's name. Run: ``python -m examples.cross_validation``.
"""

from __future__ import annotations

import time

from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

from examples.session import local_session
from spark_fm import FactorizationMachine, FMEvaluator, datasets


def main() -> None:
    """Run the example."""
    spark = local_session("local[*]")
    train, test = (part.cache() for part in datasets.a9a(spark))
    machine = FactorizationMachine(seed=7, epochs=10)
    grid = (
        ParamGridBuilder()
        .addGrid(machine.numFactors, [4, 16])
        .addGrid(machine.factorsWd, [0.003, 0.012, 0.05])
        .build()
    )
    cross_validator = CrossValidator(
        estimator=machine,
        estimatorParamMaps=grid,
        evaluator=FMEvaluator(metricName="test:binary_classification_cross_entropy"),
        numFolds=3,
        seed=1,
    )

    started = time.perf_counter()
    result = cross_validator.fit(train)
    seconds = time.perf_counter() - started

    print("numFactors  factorsWd  cross entropy (3 folds)")
    for params, value in zip(grid, result.avgMetrics, strict=True):
        k, weight_decay = params[machine.numFactors], params[machine.factorsWd]
        mark = "  <- best" if value == min(result.avgMetrics) else ""
        print(f"{k:>10}  {weight_decay:>9}  {value:.4f}{mark}")
    n_models = len(grid) * cross_validator.getNumFolds() + 1
    print(f"\n{n_models} models in {seconds:.0f} s; the best on held-out rows:")
    print(f"log loss {result.bestModel.evaluate(test).metrics['logloss']:.4f}")
    spark.stop()


if __name__ == "__main__":
    main()
