"""From raw columns to a saved model: feature stages and a factorization machine, one Pipeline.

Trains on UCI Adult's 14 categorical columns, once one-hot encoded and once hashed, and
scores raw rows with the saved pipeline. Run: ``python -m examples.pipeline --out FOLDER``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import FeatureHasher, OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.sql import functions as F

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets


def one_hot_stages(columns: list[str]) -> list:
    """Index the values seen in training, and one for the others; one feature per value."""
    indexed, encoded = [f"{c}_index" for c in columns], [f"{c}_one_hot" for c in columns]
    return [
        StringIndexer(inputCols=columns, outputCols=indexed, handleInvalid="keep"),
        OneHotEncoder(inputCols=indexed, outputCols=encoded, dropLast=False),
        VectorAssembler(inputCols=encoded, outputCol="features"),
    ]


def hashing_stages(columns: list[str]) -> list:
    """Hash "column=value" into a fixed number of features, without a pass or a dictionary."""
    return [FeatureHasher(inputCols=columns, outputCol="features", numFeatures=2**14)]


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pipeline-output"))
    out = parser.parse_args().out.resolve()

    spark = local_session("local[*]")
    train, test = (part.cache() for part in datasets.adult(spark))
    columns = list(datasets.ADULT_COLUMNS)
    machine = FactorizationMachine(predictorType="binary_classifier", numFactors=8, seed=7)
    area = BinaryClassificationEvaluator()

    print(f"{train.count():,} rows of {len(columns)} raw columns\n")
    print("features from          features  ROC AUC on held-out rows")
    for name, stages in (
        ("one-hot encoding", one_hot_stages(columns)),
        ("hashing", hashing_stages(columns)),
    ):
        model = Pipeline(stages=[*stages, machine]).fit(train)
        size = model.stages[-1].numFeatures
        print(f"{name:<20} {size:>10,}  {area.evaluate(model.transform(test)):.4f}")
        model.write().overwrite().save(str(out / name.replace(" ", "-")))

    loaded = PipelineModel.load(str(out / "hashing"))
    person = test.select(columns).limit(1)
    score = loaded.transform(person).first()["score"]
    print("\nA held-out person, and the same with other values (saved model, raw columns):")
    print(f"  {'as they are':<34} P(income over 50,000) = {score:.3f}")
    for column, value in (
        ("education", "Prof-school"),
        ("marital_status", "Never-married"),
        ("capital_gain", "114-99999"),
    ):
        changed = loaded.transform(person.withColumn(column, F.lit(value)))
        print(
            f"  {column + ' = ' + value:<34} P(income over 50,000) = {changed.first()['score']:.3f}"
        )
    print(f"\nBoth pipelines are saved in {out}")
    spark.stop()


if __name__ == "__main__":
    main()
