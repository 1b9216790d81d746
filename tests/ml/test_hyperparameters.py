"""SageMaker's hyperparameters: the map in, the same training, the map back."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import Vectors

import spark_fm
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.ml.hyperparameters import HYPERPARAMETERS, param_name
from spark_fm.recordio import write_records
from tests.ml.builders import N_FEATURES, frame_of

REQUIRED = {"feature_dim": "20", "num_factors": "4", "predictor_type": "binary_classifier"}
# Defaults of "Factorization Machines Hyperparameters", AWS developer guide.
DEFAULTS = {
    "mini_batch_size": 1000, "epochs": 1, "bias_lr": 0.1, "linear_lr": 0.001,
    "factors_lr": 0.0001, "bias_wd": 0.01, "linear_wd": 0.001, "factors_wd": 0.00001,
    "bias_init_method": "normal", "bias_init_sigma": 0.01, "linear_init_method": "normal",
    "linear_init_sigma": 0.01, "factors_init_method": "normal", "factors_init_sigma": 0.001,
}  # fmt: skip
PUBLISHED_JOB = {
    "feature_dim": "2623", "num_factors": "64", "predictor_type": "binary_classifier",
    "mini_batch_size": "200", "epochs": "30",
}  # fmt: skip
PUBLISHED = [
    0.68580, 0.67316, 0.66334, 0.65552, 0.64909, 0.64364, 0.63890, 0.63469, 0.63088, 0.62738,
    0.62414, 0.62110, 0.61824, 0.61551, 0.61291, 0.61042, 0.60803, 0.60572, 0.60349, 0.60133,
    0.59923, 0.59720, 0.59523, 0.59331, 0.59144, 0.58962, 0.58784, 0.58612, 0.58443, 0.58278,
]  # fmt: skip


def value_of(stage, name):
    return stage.getOrDefault(param_name(name))


class TestTheMap:
    @pytest.mark.parametrize("name", sorted(HYPERPARAMETERS))
    def test_every_name_is_a_param(self, name):
        assert FactorizationMachine().hasParam(param_name(name))

    @pytest.mark.parametrize("name", sorted(DEFAULTS))
    def test_defaults_are_sagemakers(self, name):
        stage = FactorizationMachine.from_hyperparameters(REQUIRED)

        assert value_of(stage, name) == DEFAULTS[name]
        assert not stage.isSet(param_name(name))

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("mini_batch_size", "200", 200),
            ("mini_batch_size", 200.0, 200),
            ("epochs", 30, 30),
            ("bias_lr", "1e-8", 1e-8),
            ("linear_lr", 0, 0.0),
            ("factors_wd", "512", 512.0),
            ("bias_init_method", "uniform", "uniform"),
            ("bias_init_value", "-0.5", -0.5),
            ("clip_gradient", "2.5", 2.5),
            ("eps", "1e-6", 1e-6),
            ("rescale_grad", "0.01", 0.01),
            ("use_bias", "false", False),
            ("use_linear", True, True),
        ],
    )
    def test_strings_and_numbers_are_taken(self, name, text, value):
        mapping = {**REQUIRED, "bias_init_scale": "0.1", name: text}

        assert value_of(FactorizationMachine.from_hyperparameters(mapping), name) == value

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("feature_dim", "0"), ("feature_dim", "-1"), ("feature_dim", "1.5"),
            ("feature_dim", "2147483648"), ("feature_dim", "1" * 400), ("num_factors", ""),
            ("num_factors", "4 4"), ("mini_batch_size", "1e3"), ("epochs", "0"), ("epochs", 1.5),
            ("epochs", True), ("predictor_type", "classifier"), ("bias_lr", "-0.1"),
            ("bias_lr", "nan"), ("linear_wd", "inf"), ("factors_init_sigma", "-1"),
            ("linear_init_scale", "a"), ("factors_init_value", "1_0"),
            ("bias_init_method", "Normal"), ("clip_gradient", "0"), ("eps", "0"),
            ("rescale_grad", "-1"), ("use_bias", "1"), ("bias_lr", [1]),
        ],
    )  # fmt: skip
    def test_a_value_out_of_range_is_refused_by_name(self, name, value):
        with pytest.raises(InvalidParamError, match=f"{name}=.*expected") as caught:
            FactorizationMachine.from_hyperparameters({**REQUIRED, name: value})

        assert HYPERPARAMETERS[name].allowed in str(caught.value)

    @pytest.mark.parametrize("name", ["epoch", "learning_rate", "biasLr", "_optimizer"])
    def test_an_unknown_name_is_refused_by_name(self, name):
        with pytest.raises(InvalidParamError, match=name):
            FactorizationMachine.from_hyperparameters({**REQUIRED, name: "1"})

    @pytest.mark.parametrize("name", sorted(REQUIRED))
    def test_a_required_name_that_is_missing_is_said(self, name):
        mapping = {key: value for key, value in REQUIRED.items() if key != name}

        with pytest.raises(InvalidParamError, match=f"{name}.* is required"):
            FactorizationMachine.from_hyperparameters(mapping)

    @pytest.mark.parametrize(
        ("method", "needed"), [("uniform", "init_scale"), ("constant", "init_value")]
    )
    def test_a_method_without_its_value_is_refused(self, method, needed):
        with pytest.raises(InvalidParamError, match=f"linear_{needed}"):
            FactorizationMachine.from_hyperparameters({**REQUIRED, "linear_init_method": method})

    def test_none_and_the_tuning_services_own_name_count_as_not_given(self):
        mapping = {**REQUIRED, "epochs": None, "_tuning_objective_metric": "test:rmse"}

        assert value_of(FactorizationMachine.from_hyperparameters(mapping), "epochs") == 1


class TestTraining:
    def test_the_model_gives_the_map_back_also_when_loaded(self, spark, train, tmp_path):
        given = {**REQUIRED, "mini_batch_size": "50", "bias_lr": "0.2", "use_linear": "false"}
        model = FactorizationMachine.from_hyperparameters(given).fit(train)
        model.save(str(tmp_path / "model"))
        loaded = FactorizationMachineModel.load(str(tmp_path / "model"))

        assert model.hyperparameters() == given
        assert loaded.hyperparameters() == given
        assert loaded.summary.running == model.summary.running
        assert json.loads(json.dumps(given)) == given

        model.to_sagemaker(tmp_path / "model.tar.gz")
        brought = FactorizationMachineModel.from_sagemaker(tmp_path / "model.tar.gz")
        assert brought.hyperparameters() == given

    def test_a_batch_that_is_nearly_all_padding_is_refused(self, train):
        stage = FactorizationMachine.from_hyperparameters(
            {**REQUIRED, "mini_batch_size": "2147483647"}
        )

        with pytest.raises(InvalidParamError, match="miniBatchSize=2,147,483,647 would fill"):
            stage.fit(train)

    def test_an_estimator_saved_and_loaded_trains_the_same_model(self, spark, train, tmp_path):
        stage = FactorizationMachine.from_hyperparameters({**REQUIRED, "epochs": "2"})
        stage.save(str(tmp_path / "stage"))
        loaded = FactorizationMachine.load(str(tmp_path / "stage"))

        np.testing.assert_array_equal(stage.fit(train).factors, loaded.fit(train).factors)

    def test_any_models_hyperparameters_are_a_map_to_train_with(self, classifier):
        given = classifier.hyperparameters()

        assert given["feature_dim"] == str(N_FEATURES)
        assert FactorizationMachine.from_hyperparameters(given).getNumFactors() == 4

    def test_several_workers_are_refused(self, train):
        stage = FactorizationMachine.from_hyperparameters(REQUIRED).setNumWorkers(2)

        with pytest.raises(InvalidParamError, match="numWorkers=2"):
            stage.fit(train)

    def test_a_dense_vector_of_another_length_is_refused(self, spark):
        frame = frame_of(
            spark, [(1.0, Vectors.dense([1.0] * 19)), (0.0, Vectors.dense([1.0] * 20))]
        )

        with pytest.raises(InvalidDataError, match=r"1 row\(s\) with vector of another length"):
            FactorizationMachine.from_hyperparameters(REQUIRED).fit(frame)

    def test_zeros_of_dense_vectors_are_entries_and_of_sparse_ones_are_none(self, spark):
        rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 4
        dense = frame_of(spark, [(float(i % 2), Vectors.dense(r)) for i, r in enumerate(rows)])
        sparse = frame_of(
            spark,
            [(float(i % 2), Vectors.sparse(3, [i % 2], [1.0])) for i in range(len(rows))],
        )
        stage = FactorizationMachine.from_hyperparameters(
            {**REQUIRED, "feature_dim": "3", "linear_wd": "1", "mini_batch_size": "4"}
        )

        decayed, kept = stage.fit(dense).linear[2], stage.fit(sparse).linear[2]

        assert kept != 0
        assert abs(decayed) < abs(kept)


@pytest.fixture(scope="module")
def ua_base(data_folder):
    """ua.base in its own order, users and the items that it has one-hot: X, y."""
    with gzip.open(data_folder / "ml-100k" / "ua.base.gz", "rt") as file:
        rows = np.loadtxt(file, dtype=np.int64)
    _, items = np.unique(rows[:, 1], return_inverse=True)
    indices = np.column_stack([rows[:, 0] - 1, 943 + items]).ravel()
    n = len(rows)
    X = sp.csr_matrix((np.ones(2 * n, np.float32), indices, np.arange(n + 1) * 2), shape=(n, 2623))
    return X, (rows[:, 2] >= 4).astype(np.float32)


@pytest.fixture(scope="module")
def ua_rows(spark, ua_base, tmp_path_factory):
    """ua.base in two files, so that their order matters."""
    X, y = ua_base
    folder = tmp_path_factory.mktemp("ua")
    write_records(str(folder / "part-0.pbr"), X[:70000], y[:70000])
    write_records(str(folder / "part-1.pbr"), X[70000:], y[70000:])
    spark_fm.register(spark)
    return spark.read.format("recordio-protobuf").load(str(folder))


class TestThePublishedRun:
    """Train cross entropy of a public job log: k=64, 30 epochs, batches of 200, defaults.

    Its log is in linahovanessian/aws-sagemaker-notebooks, ``Recommendation-Machine-
    Explicit.ipynb``. That job had no seed, and neither has its data a known one: how far
    another draw of the first values is from it shows in docs/sagemaker.md.
    """

    def test_the_published_curve_is_reproduced_within_5e_4_at_each_epoch(self, ua_rows):
        stage = FactorizationMachine.from_hyperparameters(PUBLISHED_JOB).setSeed(1)

        model = stage.fit(ua_rows)

        curve = [
            epoch["metrics"]["binary_classification_cross_entropy"]
            for epoch in model.summary.running
        ]
        np.testing.assert_allclose(curve, PUBLISHED, atol=5e-4, rtol=0)
        assert model.summary.running[0]["rows"] == 90570
        assert model.numFeatures == 2623
        assert model.features is None

    def test_shuffled_rows_train_another_curve(self, ua_rows):
        stage = FactorizationMachine.from_hyperparameters(
            {**PUBLISHED_JOB, "epochs": "8"}
        ).setShuffle(True)

        model = stage.fit(ua_rows)

        curve = [epoch["metrics"]["binary_classification_cross_entropy"]
                 for epoch in model.summary.running]  # fmt: skip
        assert np.abs(np.array(curve) - PUBLISHED[:8]).max() > 0.005
