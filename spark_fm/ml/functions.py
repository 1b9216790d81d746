"""Models as SQL functions; driver only."""

from __future__ import annotations

from typing import Literal

from pyspark.sql import SparkSession

from spark_fm.errors import InvalidParamError
from spark_fm.learner.spec import require
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.params import BINARY
from spark_fm.scoring.columns import FunctionTask, make_task, sql_function
from spark_fm.spark.resources import scoring_gpu
from spark_fm.spark.session import hand_rows_to_functions, use_driver_interpreter


def register_udf(
    spark: SparkSession,
    name: str,
    model: FactorizationMachineModel,
    *,
    output: Literal["score", "predicted_label"] = "score",
) -> None:
    """Make a model a SQL function: ``SELECT fm_score(features) FROM t``.

    Parameters
    ----------
    spark : SparkSession
        The function is a temporary one of this session.
    name : str
        Of the function; one of the same name is replaced.
    model : FactorizationMachineModel
    output : {"score", "predicted_label"}
        What the function returns, as a double: P(label = 1) or a regressor's value, or, of
        a classifier, 1.0 where that is at least the model's threshold and 0.0 elsewhere.

    Raises
    ------
    InvalidParamError
        For another output, the label of a regressor, or what is no fitted model.
    SparkFMError
        For a model without parameters.

    Notes
    -----
    The function takes a vector, ``array<double>`` or ``array<float>`` column, and is
    deterministic. A row that cannot be scored is an error, or null when the model's
    ``handleInvalid`` is "keep" or "skip": a function drops no rows. The model is copied as
    it is now: later changes of it change nothing.

    From Spark 4.2 on, where Python functions fail on vectors of a Parquet table otherwise,
    it sets ``spark.sql.execution.arrow.pythonUDF.columnarInput.enabled`` to false in this
    session.
    """
    if not isinstance(model, FactorizationMachineModel):
        raise InvalidParamError(
            f"model is a {type(model).__name__}; expected a FactorizationMachineModel. Fit the "
            "estimator, or take the fitted stage out of a pipeline: pipelineModel.stages[-1]."
        )
    allowed = ("score", "predicted_label") if model.getPredictorType() == BINARY else ("score",)
    require(output in allowed, "output", output, " or ".join(f'"{each}"' for each in allowed))
    use_driver_interpreter(spark)
    hand_rows_to_functions(spark)
    task = make_task(
        model._handle(spark), loss=model._loss, features_col=f"{name}(...)",
        handle_invalid="error" if model.getHandleInvalid() == "error" else "keep",
        gpu=scoring_gpu(model.getDevice(), spark),
    )  # fmt: skip
    threshold = model.getThreshold() if output == "predicted_label" else None
    spark.udf.register(name, sql_function(FunctionTask(task, threshold)))
