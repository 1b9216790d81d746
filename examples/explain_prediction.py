"""Explain predictions of income (UCI Adult, a9a): which features, and which pairs, decided.

Prints the parts of one prediction, and plots the strongest features and attributes.
"""

from __future__ import annotations

import argparse
from typing import Any

from pyspark.sql import functions as F

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", help="plot the strengths to this file, such as out.png")
    arguments = parser.parse_args()
    spark = local_session("local[*]")
    train, test = datasets.a9a(spark)
    groups: dict[str, list[int]] = {}
    for feature in train.schema["features"].metadata["ml_attr"]["attrs"]["binary"]:
        groups.setdefault(feature["name"].split("=")[0], []).append(feature["idx"])
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
