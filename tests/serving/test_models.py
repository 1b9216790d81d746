"""Publishing: what workers map is what was saved, or nothing."""

from __future__ import annotations

import subprocess
import sys
import tarfile

import numpy as np
import pytest

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.mxnet import write_ndarrays
from spark_fm.formats.models.native import imported_model
from spark_fm.formats.models.sagemaker import write_sagemaker
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from spark_fm.serving.models import open_model, publish
from spark_fm.serving.settings import current_name
from spark_fm.serving.supervisor import resolve_model, signature
from tests.builders import planted_weights, random_batch
from tests.serving.servers import ROOT, save_model


def test_a_published_model_scores_as_the_saved_one(tmp_path):
    weights = planted_weights(40, 5, seed=3)
    path = save_model(tmp_path / "m", weights, threshold=0.3)
    publish(path, tmp_path, "version-1")
    served = open_model(tmp_path, current_name(tmp_path))
    rows = random_batch(50, 40, seed=1)
    scores = served.predict(rows)
    assert np.array_equal(scores, weights.predict(rows, "logistic"))
    assert np.array_equal(served.labels(scores), (scores >= 0.3).astype(np.float32))
    assert not served.weights.table.flags.owndata  # mapped, not copied


@pytest.mark.parametrize("layer", ["model.tar.gz", "model_algo-1"])
def test_sagemaker_s_own_artifact_is_served_as_it_is(tmp_path, layer):
    weights = planted_weights(40, 5, seed=3)
    folder, shared = tmp_path / "artifact", tmp_path / "shared"
    folder.mkdir()
    shared.mkdir()
    write_sagemaker(str(folder / "model.tar.gz"), imported_model(
        weights, "binary_classifier", threshold=0.5, origin={}
    ))  # fmt: skip
    if layer == "model_algo-1":
        with tarfile.open(folder / "model.tar.gz") as archive:
            archive.extract(layer, folder, filter="data")
        (folder / "model.tar.gz").unlink()

    path = resolve_model(str(folder))
    digest = publish(path, shared, "version-1")

    assert path == str(folder / layer)
    assert signature(str(folder)) is not None
    assert publish(path, shared, "version-2") == digest
    rows = random_batch(50, 40, seed=1)
    assert np.array_equal(
        open_model(shared, "version-1").predict(rows), weights.predict(rows, "logistic")
    )


@pytest.mark.parametrize("name", ["model_algo-1", "x.params"])
def test_a_list_of_mxnet_s_arrays_is_served_with_its_predictor_type(tmp_path, name):
    weights = planted_weights(40, 5, seed=3)
    folder, shared = tmp_path / "artifact", tmp_path / "shared"
    folder.mkdir()
    shared.mkdir()
    arrays = [("arg:v", weights.factors), ("arg:w1_weight", weights.linear[:, None]),
              ("arg:w0_weight", np.array([weights.bias], np.float32))]  # fmt: skip
    with open(folder / name, "wb") as file:
        write_ndarrays(file, arrays)

    with pytest.raises(InvalidParamError, match="--predictor-type"):
        publish(resolve_model(str(folder)), shared, "version-1")
    publish(resolve_model(str(folder)), shared, "version-1", predictor_type="regressor")

    rows = random_batch(50, 40, seed=1)
    expected = FMWeights(float(np.float32(weights.bias)), weights.table, 40)
    assert np.array_equal(
        open_model(shared, "version-1").predict(rows), expected.predict(rows, "squared")
    )


def test_a_model_of_huge_ids_keeps_its_table_of_ids(tmp_path):
    ids = np.array([5, 1_000_000_007, 2**31 - 2], np.int32)
    table = planted_weights(3, 2, seed=1).table
    weights = FMWeights(0.5, table, 2**31 - 1, ids)
    publish(save_model(tmp_path / "m", weights, kind="regressor"), tmp_path, "version-1")
    served = open_model(tmp_path, "version-1")
    row = CsrBatch.from_arrays(np.array([0, 1]), ids[2:], np.ones(1, np.float32))
    assert served.predict(row)[0] == np.float32(0.5 + table[2, -1])
    assert served.labels(served.predict(row)) is None


@pytest.mark.parametrize("part", ["features.npy", "table.npy", "metadata.json"])
def test_a_version_that_is_being_removed_is_not_opened_in_part(tmp_path, part):
    weights = FMWeights(
        0.5, planted_weights(3, 2, seed=1).table, 1000, np.array([5, 70, 999], np.int32)
    )
    publish(save_model(tmp_path / "m", weights), tmp_path, "version-1")
    (tmp_path / "version-1" / part).unlink()
    with pytest.raises(FileNotFoundError):
        open_model(tmp_path, "version-1")


def test_tables_that_do_not_belong_together_are_not_opened(tmp_path):
    weights = FMWeights(
        0.5, planted_weights(3, 2, seed=1).table, 1000, np.array([5, 70, 999], np.int32)
    )
    publish(save_model(tmp_path / "m", weights), tmp_path, "version-1")
    np.save(tmp_path / "version-1" / "features.npy", np.array([5, 70], np.int32))
    with pytest.raises(OSError, match="2 rows instead of 3"):
        open_model(tmp_path, "version-1")


def test_the_same_model_is_not_published_again_but_another_threshold_is(tmp_path):
    weights = planted_weights(4, 2, seed=3)
    same, other = (
        save_model(tmp_path / name, weights, threshold=threshold)
        for name, threshold in (("a", 0.5), ("b", 0.6))
    )
    assert publish(same, tmp_path, "version-1") == publish(same, tmp_path, "version-2")
    assert current_name(tmp_path) == "version-1"
    publish(other, tmp_path, "version-3")
    assert current_name(tmp_path) == "version-3"


@pytest.mark.parametrize("harm", ["damage", "nan", "nothing"])
def test_a_broken_model_is_refused_and_the_old_stays(tmp_path, harm):
    publish(save_model(tmp_path / "good", planted_weights(4, 2, seed=3)), tmp_path, "version-1")
    bad = planted_weights(4, 2, seed=4)
    if harm == "nan":
        table = bad.table.copy()
        table[2, 1] = np.nan
        bad = FMWeights(0.0, table, 4)
    path = save_model(tmp_path / "bad", bad)
    if harm == "damage":
        file = tmp_path / "bad" / "data" / "part-00000.parquet"
        file.write_bytes(file.read_bytes()[:-50])
    if harm == "nothing":
        path = str(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError):
        publish(path, tmp_path, "version-2")
    assert current_name(tmp_path) == "version-1"
    assert open_model(tmp_path, "version-1").weights.k == 2


def test_publishing_serving_and_asking_load_no_pyspark(tmp_path):
    path = save_model(tmp_path / "m", planted_weights(4, 2, seed=3))
    code = (
        "import sys; from pathlib import Path;"
        "import spark_fm.cli.serve, spark_fm.serving.supervisor, spark_fm.serving.client;"
        "print('numba' in sys.modules);"
        "import spark_fm.serving.models as m;"
        "m.publish(sys.argv[1], Path(sys.argv[2]), 'version-1');"
        "import spark_fm.serving.worker;"
        "print({'pyspark', 'py4j', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[1] == "set()"
