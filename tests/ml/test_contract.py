"""What every Spark ML stage promises, for the estimator and the model."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from pyspark.ml.param import TypeConverters
from pyspark.sql import DataFrame

from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import SparkFMError
from tests.ml.builders import VALUES, column, fast_fm

NAMES = sorted(VALUES)
STAGES = [FactorizationMachine, FactorizationMachineModel]


def getter(stage: Any, name: str) -> Any:
    return getattr(stage, f"get{name[0].upper()}{name[1:]}")


def setter(stage: Any, name: str) -> Any:
    return getattr(stage, f"set{name[0].upper()}{name[1:]}")


def param_names(stage: Any) -> list[str]:
    return [param.name for param in stage.params]


# Construction ---------------------------------------------------------------------------


def test_stages_are_constructed_without_a_spark_session() -> None:
    code = (
        "from pyspark import SparkContext\n"
        "from pyspark.sql import SparkSession\n"
        "from spark_fm import FactorizationMachine, FactorizationMachineModel\n"
        "FactorizationMachine(), FactorizationMachineModel()\n"
        "assert SparkContext._active_spark_context is None\n"
        "assert SparkSession.getActiveSession() is None\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_param_has_a_value_in_this_file(stage: type) -> None:
    assert param_names(stage()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_keyword_setter_and_getter_agree(name: str) -> None:
    by_keyword = FactorizationMachine(**{name: VALUES[name]})
    by_setter = FactorizationMachine()
    returned = setter(by_setter, name)(VALUES[name])
    by_set_params = FactorizationMachine().setParams(**{name: VALUES[name]})

    assert returned is by_setter
    for stage in (by_keyword, by_setter, by_set_params):
        assert getter(stage, name)() == VALUES[name]
        assert stage.isSet(stage.getParam(name))
    fresh = FactorizationMachine()
    assert not fresh.isDefined(fresh.getParam(name)) or getter(fresh, name)() != VALUES[name]


@pytest.mark.parametrize("method", [FactorizationMachine.__init__, FactorizationMachine.setParams])
def test_signature_covers_every_param(method: Any) -> None:
    parameters = dict(inspect.signature(method).parameters)
    del parameters["self"]

    assert sorted(parameters) == NAMES
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert all(p.default is None for p in parameters.values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_set_until_the_user_sets_it(stage: type, name: str) -> None:
    fresh = stage()

    assert not fresh.isSet(fresh.getParam(name))


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="numFactor"):
        FactorizationMachine(numFactor=3)
    with pytest.raises(TypeError, match="numFactor"):
        FactorizationMachine().setParams(numFactor=3)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        FactorizationMachine("features")
    with pytest.raises(TypeError):
        FactorizationMachine().setParams("features")


@pytest.mark.parametrize(
    ("name", "value"),
    [("numFactors", "four"), ("epochs", 2.5), ("useBias", 1), ("threshold", "x"), ("labelCol", 3)],
)
def test_a_value_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=name):
        FactorizationMachine(**{name: value})


def test_several_feature_columns_are_told_how_to_become_one() -> None:
    with pytest.raises(TypeError, match=r"one column .*VectorAssembler\(inputCols=\['a', 'b'\]"):
        FactorizationMachine(featuresCol=["a", "b"])


@pytest.mark.parametrize("name", NAMES)
def test_none_leaves_a_param_unset_or_unsets_it(name: str) -> None:
    by_keyword = FactorizationMachine(**{name: None})
    by_setter = setter(FactorizationMachine(**{name: VALUES[name]}), name)(None)
    original = FactorizationMachine(**{name: VALUES[name]})
    by_extra = original.copy({original.getParam(name): None})

    for stage in (by_keyword, by_setter, by_extra):
        assert not stage.isSet(stage.getParam(name))
    assert original.isSet(original.getParam(name))


# Params ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_explain_params_documents_every_param(stage: type) -> None:
    text = stage().explainParams()

    for param in stage().params:
        assert f"{param.name}: {param.doc}" in text
        assert param.doc


def test_docs_of_numeric_params_hold_the_legal_range() -> None:
    numbers = (TypeConverters.toInt, TypeConverters.toFloat)
    for param in FactorizationMachine().params:
        if param.typeConverter in numbers and param.name != "seed":
            assert re.search(r">=? ?\d|\d to |any number|^1 averages", param.doc), param.doc


@pytest.mark.parametrize("stage", STAGES)
def test_every_param_converts_types_and_is_plain_json(stage: type) -> None:
    for param in stage().params:
        assert param.typeConverter is not TypeConverters.identity, param.name

    values = {param.name: value for param, value in stage().extractParamMap().items()}
    estimator = FactorizationMachine(**VALUES)
    values_set = {param.name: value for param, value in estimator.extractParamMap().items()}

    assert json.loads(json.dumps(values)) == values
    assert json.loads(json.dumps(values_set)) == VALUES


def test_estimator_and_model_have_the_same_params_and_defaults() -> None:
    estimator, model = FactorizationMachine(), FactorizationMachineModel()

    assert param_names(estimator) == param_names(model)
    defaults = [{p.name: v for p, v in s.extractParamMap().items()} for s in (estimator, model)]
    assert defaults[0] == defaults[1]


def test_extract_param_map_puts_the_extra_over_the_set_over_the_default() -> None:
    fm = FactorizationMachine(epochs=3, seed=5)

    values = {p.name: v for p, v in fm.extractParamMap({fm.epochs: 9}).items()}

    assert (values["epochs"], values["seed"], values["numFactors"]) == (9, 5, 16)
    assert fm.getEpochs() == 3


def test_the_default_seed_is_a_constant() -> None:
    assert FactorizationMachine().getSeed() == FactorizationMachineModel().getSeed() == 0


@pytest.mark.parametrize("stage", STAGES)
def test_copies_are_independent(stage: type) -> None:
    original = stage()
    original._set(scoreCol="before")

    copied = original.copy({original.threshold: 0.75})
    copied._set(scoreCol="after")

    assert copied.uid == original.uid
    assert (copied.getScoreCol(), copied.getThreshold()) == ("after", 0.75)
    assert (original.getScoreCol(), original.getThreshold()) == ("before", 0.5)


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        (FactorizationMachine, "spark_fm.ml.estimator.FactorizationMachine"),
        (FactorizationMachineModel, "spark_fm.ml.model.FactorizationMachineModel"),
    ],
)
def test_class_paths_never_move(stage: type, path: str) -> None:
    assert f"{stage.__module__}.{stage.__name__}" == path


@pytest.mark.parametrize(
    "name",
    [
        "featuresCol",
        "scoreCol",
        "predictedLabelCol",
        "predictionCol",
        "probabilityCol",
        "rawPredictionCol",
        "threshold",
        "handleInvalid",
    ],
)
def test_the_model_has_setters_for_what_matters_in_transform(name: str) -> None:
    model = FactorizationMachineModel()

    assert setter(model, name)(VALUES[name]) is model
    assert getter(model, name)() == VALUES[name]


# Fitting --------------------------------------------------------------------------------


def test_the_model_has_the_uid_and_the_params_of_its_estimator(train: DataFrame) -> None:
    fm = fast_fm(epochs=1, scoreCol="s", threshold=0.3)

    model = fm.fit(train)

    assert model.uid == fm.uid
    for param in fm.params:
        assert model.isSet(model.getParam(param.name)) == fm.isSet(param), param.name
        if fm.isDefined(param):
            assert getter(model, param.name)() == getter(fm, param.name)(), param.name
    assert "p" in model.transform(train, {fm.scoreCol: "p"}).columns


def test_fit_takes_param_maps_and_leaves_the_estimator_alone(train: DataFrame) -> None:
    fm = fast_fm(epochs=3)

    one = fm.fit(train, {fm.epochs: 1})
    several = fm.fit(train, [{fm.epochs: 2}, {fm.scoreCol: "p"}])

    assert one.summary.totalIterations == 1
    assert [model.summary.totalIterations for model in several] == [2, 3]
    assert [model.getScoreCol() for model in several] == ["score", "p"]
    assert fm.getEpochs() == 3


def test_fit_changes_nothing_on_the_estimator(train: DataFrame) -> None:
    fm = fast_fm(epochs=1)
    assert fm.params  # Spark keeps the list on first use
    before = dict(vars(fm))
    values = dict(fm.extractParamMap())

    fm.fit(train)

    assert vars(fm) == before
    assert fm.extractParamMap() == values


def test_tasks_do_not_carry_the_stage(train: DataFrame) -> None:
    fm = fast_fm(epochs=1)
    fm.not_picklable = threading.Lock()

    model = fm.fit(train)
    model.not_picklable = threading.Lock()

    assert model.transform(train).count() == 300
    assert len(column(model.transform(train), "score")) == 300


def test_weights_of_a_model_are_read_only(classifier: FactorizationMachineModel) -> None:
    for array in (classifier.linear, classifier.factors):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_an_empty_model_says_what_it_lacks(train: DataFrame) -> None:
    with pytest.raises(SparkFMError, match="fit or load one"):
        FactorizationMachineModel().transform(train)
    assert "empty" in repr(FactorizationMachineModel())
