"""Track a training with MLflow, log the model, and score with it without Spark.

Trains on UCI Adult (a9a). Needs ``pip install 'spark-fm[mlflow]'``. The runs are in the
folder that it prints; ``mlflow ui --backend-store-uri`` with that folder shows them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets
from spark_fm.mlflow import log_model


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mlflow-output"))
    store = parser.parse_args().out.resolve() / "mlruns"

    # A folder needs no server and no database; MLflow 3 asks for this confirmation.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    mlflow.set_tracking_uri(store.as_uri())
    mlflow.set_experiment("a9a")

    spark = local_session("local[*]")
    train, test = datasets.a9a(spark)
    rows = test.toPandas()
    fm = FactorizationMachine(numFactors=8, epochs=8, seed=7, refit="never")
    with mlflow.start_run(run_name="fm") as run:
        mlflow.log_params({"numFactors": fm.getNumFactors(), "seed": fm.getSeed()})
        model = fm.fit(train)  # every epoch reaches the run
        info = log_model(model)
    expected = model.predict(rows["features"])
    spark.stop()

    for metric in mlflow.MlflowClient().get_metric_history(run.info.run_id, "validationLoss"):
        print(f"epoch {metric.step}  validation loss {metric.value:.4f}")

    scorer = mlflow.pyfunc.load_model(info.model_uri)  # NumPy and Numba, no Java
    scored = scorer.predict(rows[["features"]])
    print(f"\n{scored.head(3)}")
    print(f"\nlargest difference {np.abs(scored['score'] - expected).max():.1e}")
    print(f"runs and model are in {store}")


if __name__ == "__main__":
    main()
