"""Explain predictions of income (UCI Adult, a9a): which features, and which pairs, decided.

Prints the parts of one prediction, and plots the strongest features and attributes.
"""

from __future__ import annotations

import argparse
from typing import Any

from pyspark.sql import functions as F

from benchmarks.datasets import a9a, to_frame
from benchmarks.local import local_session
from spark_fm import FactorizationMachine

# The attributes of a9a in order, with their one-hot features.
ATTRIBUTES = {
    "age": 5, "workclass": 8, "fnlwgt": 5, "education": 16, "years of school": 5,
    "marital status": 7, "occupation": 14, "relationship": 6, "race": 5, "sex": 2,
    "capital gain": 2, "capital loss": 2, "hours a week": 5, "country": 41,
}  # fmt: skip


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", help="plot the strengths to this file, such as out.png")
    arguments = parser.parse_args()
    spark = local_session("local[*]")
    split = a9a()
    groups, names = named_features()
    attributes = [{"idx": j, "name": name} for j, name in enumerate(names)]
    metadata = {"ml_attr": {"attrs": {"binary": attributes}, "num_attrs": len(names)}}
    train, test = (
        to_frame(spark, rows).select(
            "label", F.col("features").alias("features", metadata=metadata)
        )
        for rows in (split.train, split.test)
    )
    model = FactorizationMachine(numFactors=8, seed=7).fit(train)

    explained = model.transform(model.explain(test, numPairs=5, numLinear=6))
    # The row that the model is least certain of.
    show(explained.orderBy(F.abs(F.col("score") - 0.5), "score").first())

    print("\nStrongest features over the test rows (mean change of the log-odds without them)")
    for row in model.feature_strengths(test).head(8).itertuples():
        print(f"  {row.name:<22} {row.total:.3f}   in {row.n_rows:,} rows")
    if arguments.plot:
        model.plot_strengths(test, groups, path=arguments.plot)
    spark.stop()


def named_features() -> tuple[dict[str, range], list[str]]:
    """Return the features of each attribute, and a name for each feature."""
    groups, names = {}, []
    for attribute, size in ATTRIBUTES.items():
        groups[attribute] = range(len(names), len(names) + size)
        names += [f"{attribute} #{number}" for number in range(1, size + 1)]
    return groups, names


def show(row: Any) -> None:
    """Print a row's score and its parts."""
    explanation = row["explanation"]
    print(f"\nP(income over 50,000) = {row['score']:.3f}, the label is {row['label']:.0f}")
    line(explanation["bias"], "bias")
    for part in explanation["linear"]:
        line(part["contribution"], part["name"])
    line(explanation["other_linear"], "all other features")
    for part in explanation["pairs"]:
        line(part["contribution"], f"{part['name_a']} with {part['name_b']}")
    line(explanation["other_pairs"], "all other pairs")
    print(f"  {'-' * 6}")
    line(explanation["margin"], "log-odds")


def line(contribution: float, what: str) -> None:
    """Print one part of the log-odds."""
    print(f"  {contribution:+.3f}  {what}")


if __name__ == "__main__":
    main()
