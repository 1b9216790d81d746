"""The metadata of saved Spark ML stages, and the words for one that is no model of ours.

Only the standard library: the server's supervisor, which stays small, checks a model by it.
"""

from __future__ import annotations

import json
from typing import Any

from spark_fm.errors import ModelFormatError

MODEL_CLASS = "spark_fm.ml.model.FactorizationMachineModel"

_ADVICE = "Fit the estimator, or take the fitted stage out of a pipeline: pipelineModel.stages[-1]."
_BEST = "Take the best of its models: model.bestModel."
_MLLIB = "Convert it: FactorizationMachineModel.from_mllib(model)."
_ADVICE_BY_CLASS = {
    "CrossValidatorModel": _BEST,
    "TrainValidationSplitModel": _BEST,
    "OneVsRestModel": "Take one of its models, which there is for each class: model.models[0].",
    "FMClassificationModel": _MLLIB,
    "FMRegressionModel": _MLLIB,
}


def no_model(what: str, class_name: str) -> str:
    """Return the words for an object or a folder of another class than our model's.

    ``what`` begins them, as "model is" or "PATH holds"; the class may have its module before it.
    """
    advice = _ADVICE_BY_CLASS.get(class_name.rsplit(".", 1)[-1], _ADVICE)
    return f"{what} a {class_name}; expected a FactorizationMachineModel. {advice}"


def parse_metadata(lines: list[str], path: str, stage_class: str) -> dict[str, Any]:
    """Return the metadata of a stage; raise ModelFormatError for one of another class."""
    try:
        stage: dict[str, Any] = json.loads(lines[0])
        found = stage["class"]
    except (IndexError, KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(
            f"{path}/metadata is not the metadata of a Spark ML stage. Restore it or save the "
            "stage again."
        ) from err
    if found == stage_class:
        return stage
    if stage_class != MODEL_CLASS:
        raise ModelFormatError(
            f"{path} holds a {found}, not a {stage_class}. Load it as what it is."
        )
    raise ModelFormatError(no_model(f"{path} holds", str(found)) + _stage_inside(stage, path))


def _stage_inside(stage: dict[str, Any], path: str) -> str:
    """Return where a saved PipelineModel has its model, or nothing."""
    params = stage.get("paramMap") if str(stage["class"]).endswith(".PipelineModel") else None
    uids = params.get("stageUids") if isinstance(params, dict) else None
    names = [str(uid) for uid in uids] if isinstance(uids, list) else []
    digits = len(str(len(names)))  # as Spark numbers the folders of stages
    folders = [
        f"{path.rstrip('/')}/stages/{number:0{digits}}_{name}"
        for number, name in enumerate(names)
        if name.startswith("FactorizationMachine")  # a model has its estimator's uid
    ]
    return f" That stage is saved at {folders[-1]}." if folders else ""


def unreadable_metadata(path: str, stage_class: str, why: str) -> ModelFormatError:
    """Return the error for a folder whose metadata cannot be read."""
    if path.startswith(("models:/", "runs:/")):
        return ModelFormatError(
            f"{path} is an address of MLflow's, not a folder. mlflow.pyfunc.load_model scores with "
            "it; to load the model itself, give the folder "
            f'mlflow.artifacts.download_artifacts("{path}") + "/data/model".'
        )
    return ModelFormatError(
        f"{path} holds no {stage_class.rsplit('.', 1)[-1]}: its metadata cannot be read ({why}). "
        "It may be another folder, or a save that was interrupted."
    )
