"""Train on UCI Adult (a9a), score its held-out part, and print the metrics.

Run by ``make demo``. It writes the set to recordIO-protobuf files and trains from those.
Records, model, scored rows and a plot are in the folder that it prints.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import functions as F

import spark_fm
from examples.session import local_session
from spark_fm import FactorizationMachine, FactorizationMachineModel, datasets


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("spark_fm").setLevel(logging.INFO)

    print("Starting Spark ...", flush=True)
    spark = local_session("local[*]")
    spark_fm.register(spark)
    for name, frame in zip(("train", "test"), datasets.a9a(spark), strict=True):
        frame.write.format("recordio-protobuf").mode("overwrite").save(str(out / "records" / name))
    train, test = (
        spark.read.format("recordio-protobuf").load(str(out / "records" / name))
        for name in ("train", "test")
    )

    machine = FactorizationMachine(predictorType="binary_classifier", numFactors=8, seed=7)
    model = machine.fit(train)
    print(f"\n{model.summary}")

    model.write().overwrite().save(str(out / "model"))
    loaded = FactorizationMachineModel.load(str(out / "model"))
    scored = loaded.transform(test).select("label", "score", "predicted_label").cache()
    scored.coalesce(1).write.mode("overwrite").parquet(str(out / "scored"))

    clipped = F.least(F.greatest("score", F.lit(1e-15)), F.lit(1 - 1e-15))
    loss = F.avg(-F.log(F.when(F.col("label") == 1, clipped).otherwise(1 - clipped)))
    hit = F.avg((F.col("label") == F.col("predicted_label")).cast("double"))
    row = scored.select(loss.alias("log loss"), hit.alias("accuracy")).first()
    area = BinaryClassificationEvaluator(rawPredictionCol="score")
    cells = {
        (r["label"], r["predicted_label"]): r["count"]
        for r in scored.groupBy("label", "predicted_label").count().collect()
    }
    tp, fp = cells.get((1.0, 1.0), 0), cells.get((0.0, 1.0), 0)
    fn, tn = cells.get((1.0, 0.0), 0), cells.get((0.0, 0.0), 0)

    print(f"\nHeld-out part of a9a, {tp + fp + fn + tn:,} rows")
    for name, value in (
        ("log loss", row["log loss"]),
        ("accuracy", row["accuracy"]),
        ("precision", tp / (tp + fp)),
        ("recall", tp / (tp + fn)),
        ("F1", 2 * tp / (2 * tp + fp + fn)),
        ("ROC AUC", area.evaluate(scored)),
        ("PR AUC", area.setMetricName("areaUnderPR").evaluate(scored)),
    ):
        print(f"  {name:<10} {value:.4f}")
    print("\n                 predicted 0  predicted 1")
    print(f"  label 0        {tn:>11,}  {fp:>11,}")
    print(f"  label 1        {fn:>11,}  {tp:>11,}")

    model.summary.plot(str(out / "loss.png"))
    print(f"\nrecords, model, scored rows (scored/*.parquet) and loss.png are in {out}")
    spark.stop()


if __name__ == "__main__":
    main()
