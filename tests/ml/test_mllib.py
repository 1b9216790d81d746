"""Models of Spark's own FMClassifier and FMRegressor come over with their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import FMClassificationModel, FMClassifier, LogisticRegression
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import DenseMatrix, DenseVector, Vectors
from pyspark.ml.regression import FMRegressor
from pyspark.sql import DataFrame

from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.ml.interop import weights_of
from tests.ml.builders import column

# float32 sums of 20 features x 3 factors against float64, in units of the values themselves.
ROUNDING = 1e-4
VECTORS = [
    Vectors.sparse(20, [0, 3], [1.0, -2.0]),
    Vectors.dense([0.5] * 20),
    Vectors.sparse(20, [], []),
]


@pytest.fixture(scope="module")
def their_classifier(train: DataFrame, tmp_path_factory: pytest.TempPathFactory):
    model = FMClassifier(factorSize=3, maxIter=15, stepSize=0.3, seed=3).fit(train)
    return without_summary(model, tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def their_regressor(ratings: DataFrame):
    return FMRegressor(factorSize=3, maxIter=15, stepSize=0.3, seed=3).fit(ratings)


def without_summary(model: FMClassificationModel, folder: Path) -> FMClassificationModel:
    """Return the model as saved and loaded.

    A model just fitted holds its summary, and that the session, which Spark 4.3 can not
    always send to a task ("Task not serializable").
    """
    model.save(str(folder / "model"))
    return FMClassificationModel.load(str(folder / "model"))


def entry(frame: DataFrame, name: str, place: int) -> np.ndarray:
    return column(frame.select(vector_to_array(name)[place].alias("x")), "x")


def test_a_classifier_has_the_same_probabilities_margins_and_labels(
    their_classifier, train: DataFrame
) -> None:
    ours = FactorizationMachineModel.from_mllib(their_classifier)

    expected, scored = their_classifier.transform(train), ours.transform(train)

    probabilities = entry(expected, "probability", 1)
    assert np.ptp(probabilities) > 0.5
    assert column(scored, "score") == pytest.approx(probabilities, abs=ROUNDING)
    for place in (0, 1):
        for name in ("probability", "rawPrediction"):
            theirs = entry(expected, name, place)
            assert entry(scored, name, place) == pytest.approx(theirs, abs=ROUNDING)
    sure = np.abs(probabilities - 0.5) > ROUNDING
    for name in ("prediction", "predicted_label"):
        assert np.array_equal(column(scored, name)[sure], column(expected, "prediction")[sure])


def test_a_regressor_has_the_same_values(their_regressor, ratings: DataFrame) -> None:
    ours = FactorizationMachineModel.from_mllib(their_regressor)

    expected, scored = their_regressor.transform(ratings), ours.transform(ratings)

    values = column(expected, "prediction")
    assert np.ptp(values) > 0.5
    assert column(scored, "prediction") == pytest.approx(values, abs=ROUNDING)
    assert column(scored, "score") == pytest.approx(values, abs=ROUNDING)


def test_the_parameters_are_theirs(their_classifier) -> None:
    ours = FactorizationMachineModel.from_mllib(their_classifier)

    assert ours.intercept == ours.bias == their_classifier.intercept
    assert ours.numFeatures == their_classifier.numFeatures == 20
    assert ours.numClasses == their_classifier.numClasses == 2
    assert not ours.hasSummary
    assert ours.linear == pytest.approx(their_classifier.linear.toArray(), rel=1e-6)
    assert ours.factors == pytest.approx(their_classifier.factors.toArray(), rel=1e-6)


@pytest.mark.parametrize("vector", VECTORS, ids=["sparse", "dense", "empty"])
def test_one_vector_is_predicted_as_mllib_does(their_classifier, their_regressor, vector) -> None:
    classifier = FactorizationMachineModel.from_mllib(their_classifier)
    regressor = FactorizationMachineModel.from_mllib(their_regressor)

    assert classifier.predict(vector) == their_classifier.predict(vector)
    assert regressor.predict(vector) == pytest.approx(their_regressor.predict(vector), abs=ROUNDING)
    for name in ("predictRaw", "predictProbability"):
        theirs, ours = (getattr(m, name)(vector) for m in (their_classifier, classifier))
        assert isinstance(ours, DenseVector)
        assert ours.toArray() == pytest.approx(theirs.toArray(), abs=ROUNDING)


def test_a_matrix_is_still_predicted_as_scores(their_classifier) -> None:
    ours = FactorizationMachineModel.from_mllib(their_classifier)

    scores = ours.predict(np.stack([vector.toArray() for vector in VECTORS]))

    expected = [ours.predictProbability(vector)[1] for vector in VECTORS]
    assert scores.dtype == np.float32
    assert scores == pytest.approx(expected, abs=ROUNDING)


def test_one_vector_is_labelled_by_the_threshold(
    classifier: FactorizationMachineModel,
) -> None:
    score = classifier.predictProbability(VECTORS[0])[1]
    below, above = classifier.copy(), classifier.copy()

    below.setThreshold(score - 0.01)
    above.setThreshold(score + 0.01)

    assert (below.predict(VECTORS[0]), above.predict(VECTORS[0])) == (1.0, 0.0)


def test_a_vector_beyond_the_model_is_refused(classifier: FactorizationMachineModel) -> None:
    with pytest.raises(InvalidDataError, match="Feature index 20"):
        classifier.predict(Vectors.sparse(30, [20], [1.0]))
    with pytest.raises(InvalidDataError, match="dense vector has 3 values, the model 20 features"):
        classifier.predict(Vectors.dense([1.0, 2.0, 3.0]))


def test_a_regressor_has_no_classes_as_in_mllib(
    regressor: FactorizationMachineModel, their_regressor
) -> None:
    for name in ("numClasses", "predictRaw", "predictProbability"):
        assert not hasattr(their_regressor, name)
        with pytest.raises(AttributeError, match=name):
            getattr(regressor, name)(VECTORS[0]) if name != "numClasses" else regressor.numClasses


def test_params_of_the_same_meaning_come_along(train: DataFrame, tmp_path: Path) -> None:
    named = train.withColumnsRenamed({"label": "y", "features": "x"})
    theirs = FMClassifier(
        featuresCol="x", labelCol="y", predictionCol="p", probabilityCol="q", factorSize=2,
        fitIntercept=False, fitLinear=False, maxIter=3, stepSize=0.3, seed=9, thresholds=[0.6, 0.2],
    ).fit(named)  # fmt: skip

    theirs = without_summary(theirs, tmp_path)

    ours = FactorizationMachineModel.from_mllib(theirs)

    assert (ours.getFeaturesCol(), ours.getLabelCol(), ours.getNumFactors()) == ("x", "y", 2)
    assert (ours.getUseBias(), ours.getUseLinear(), ours.getSeed()) == (False, False, 9)
    assert ours.bias == 0
    assert not ours.linear.any()
    assert ours.getThreshold() == pytest.approx(0.25)
    scored = ours.transform(named)
    added = ["score", "predicted_label", "q", "rawPrediction", "p"]
    assert scored.columns == ["y", "x", *added]
    assert np.array_equal(column(scored, "p"), column(theirs.transform(named), "p"))


def test_a_converted_model_is_saved_and_loaded(
    their_classifier, train: DataFrame, tmp_path: Path
) -> None:
    ours = FactorizationMachineModel.from_mllib(their_classifier)

    ours.save(str(tmp_path / "model"))
    loaded = FactorizationMachineModel.load(str(tmp_path / "model"))

    scores = column(ours.transform(train), "score")
    assert np.array_equal(column(loaded.transform(train), "score"), scores)


def test_anything_else_is_refused_by_name(train: DataFrame) -> None:
    other = LogisticRegression(maxIter=1).fit(train)
    pipeline = Pipeline(stages=[LogisticRegression(maxIter=1)]).fit(train)

    for model in (other, pipeline, None, FMClassifier()):
        with pytest.raises(InvalidParamError, match=type(model).__name__):
            FactorizationMachineModel.from_mllib(model)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_parameters_that_are_no_float32_are_refused(value: float) -> None:
    class Diverged:
        uid = "FMClassifier_1"
        intercept = 0.0
        linear = Vectors.dense([0.0, value])
        factors = DenseMatrix(2, 1, [0.0, 0.0])

    with pytest.raises(InvalidDataError, match="diverged"):
        weights_of(Diverged())


def test_factors_are_read_in_either_order_of_the_matrix() -> None:
    class Model:
        uid = "FMRegressor_1"
        intercept = 0.5
        linear = Vectors.sparse(2, [1], [7.0])

    rows = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for by_row, values in ((True, rows.ravel()), (False, rows.T.ravel())):
        Model.factors = DenseMatrix(2, 3, values, by_row)

        weights = weights_of(Model())

        assert np.array_equal(weights.factors, rows)
        assert weights.linear.tolist() == [0, 7]
