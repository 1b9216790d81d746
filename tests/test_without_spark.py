"""A saved model is loaded, scored with and served where there is no PySpark and no Java."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import spark_fm
from spark_fm.errors import InvalidColumnError, InvalidDataError, ModelFormatError
from spark_fm.formats.vectors import VECTOR_TYPE
from tests import oracle
from tests.builders import planted_weights, random_batch
from tests.serving.servers import save_model

N = 12
WEIGHTS = planted_weights(N, 4, seed=1)
BATCH = random_batch(50, N, seed=2)
MATRIX = sp.csr_matrix((BATCH.values, BATCH.indices, BATCH.indptr), shape=(50, N))
SCORES = 1 / (1 + np.exp(-oracle.scores(oracle.Model.of_table(WEIGHTS.table, WEIGHTS.bias), BATCH)))


def dicts() -> list[dict[str, list[float]]]:
    rows = [MATRIX[[number]] for number in range(50)]
    return [{"indices": row.indices.tolist(), "values": row.data.tolist()} for row in rows]


def structs() -> pa.Table:
    """Return what Spark writes vectors as."""
    cells = [{"type": 0, "size": N, **row} for row in dicts()]
    return pa.table({"features": pa.array(cells, VECTOR_TYPE)})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return save_model(tmp_path / "model", WEIGHTS, threshold=0.4)


@pytest.fixture
def model(path: str) -> spark_fm.LoadedModel:
    return spark_fm.load(path)


FORMS = {
    "sparse": MATRIX,
    "sparse columns": sp.csc_array(MATRIX),
    "array": MATRIX.toarray(),
    "rows": MATRIX.toarray().tolist(),
    "dicts": dicts(),
    "records": [{"id": "x", "features": row} for row in dicts()],
    "table of Spark's vectors": structs(),
    "table of lists": pa.table({"features": MATRIX.toarray().tolist()}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_rows_scores_alike(form: str, model: spark_fm.LoadedModel) -> None:
    scores = model.predict(FORMS[form])

    assert scores.dtype == np.float32
    assert scores == pytest.approx(SCORES, rel=1e-4)  # float32 sums
    clear = np.abs(SCORES - 0.4) > 1e-4
    assert np.array_equal(model.labels(scores)[clear], (SCORES > 0.4)[clear])


def test_a_pandas_frame_scores_by_its_vectors_or_its_columns(
    model: spark_fm.LoadedModel, tmp_path: Path
) -> None:
    pd = pytest.importorskip("pandas")
    pq.write_table(structs(), tmp_path / "rows.parquet")

    for frame in (
        pd.DataFrame(MATRIX.toarray()),
        pd.DataFrame({"id": "x", "features": dicts()}),
        pd.DataFrame({"features": list(MATRIX.toarray())}),
        pd.read_parquet(tmp_path / "rows.parquet"),
    ):
        assert model.predict(frame) == pytest.approx(SCORES, rel=1e-4)


def test_a_path_may_be_an_object_or_a_uri(path: str) -> None:
    for place in (Path(path), f"file://{path}"):
        assert spark_fm.load(place).predict(MATRIX) == pytest.approx(SCORES, rel=1e-4)


def test_it_tells_what_it_is(model: spark_fm.LoadedModel) -> None:
    assert repr(model) == "LoadedModel(binary_classifier, numFeatures=12, numFactors=4)"
    assert model.params["threshold"] == 0.4


def test_a_regressor_has_values_and_no_labels(tmp_path: Path) -> None:
    model = spark_fm.load(save_model(tmp_path / "model", WEIGHTS, kind="regressor"))

    values = model.predict(MATRIX)

    margins = oracle.scores(oracle.Model.of_table(WEIGHTS.table, WEIGHTS.bias), BATCH)
    assert values == pytest.approx(margins, rel=1e-3, abs=1e-5)
    assert model.labels(values) is None


@pytest.mark.parametrize(
    "row",
    [
        {"indices": [N], "values": [1.0]},
        {"indices": [1, 2], "values": [1.0]},
        {"indices": [1], "values": [float("nan")]},
        {"indices": [1], "values": [1e300]},
        {"indices": [1, 2], "values": [3e38, 3e38]},
        None,
    ],
    ids=str,
)
def test_a_row_that_cannot_be_scored_is_named_or_nan(
    row: object, path: str, tmp_path: Path
) -> None:
    rows = [dicts()[0], row, dicts()[1]]

    with pytest.raises(InvalidDataError, match=r"Row 1 is .* outside 0 to 11"):
        spark_fm.load(path).predict(rows)
    lenient = spark_fm.load(save_model(tmp_path / "kept", WEIGHTS, invalid="keep")).predict(rows)
    assert np.isnan(lenient).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[1.0, 2.0]], InvalidDataError, "X has 2 columns, the model has 12 features"),
        ([["a"] * N], InvalidDataError, "X has dtype"),
        ([{"index": [1]}], InvalidColumnError, "X has a dict of 'index' in row 0; expected"),
        ([{"indices": "a", "values": [1]}], InvalidColumnError, "X holds neither lists"),
        (pa.table({"vector": [[1.0]]}), InvalidColumnError, r"no column 'features' but \['vector"),
        (pa.table({"features": ["a"]}), InvalidColumnError, "holds neither lists of numbers"),
    ],
)
def test_what_are_no_rows_is_refused(
    rows: object, error: type, message: str, model: spark_fm.LoadedModel
) -> None:
    with pytest.raises(error, match=message):
        model.predict(rows)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="holds no FactorizationMachineModel"):
        spark_fm.load(tmp_path)


BLOCKED = "import sys; sys.modules['pyspark'] = sys.modules['py4j'] = None; "


def run_without_pyspark(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which PySpark cannot be imported, whether or not it is installed."""
    words = [sys.executable, "-c", BLOCKED + code, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


COMMAND = "from spark_fm.cli.main import main; sys.exit(main())"


def test_a_program_without_pyspark_loads_and_scores(path: str) -> None:
    done = run_without_pyspark(
        "import spark_fm, spark_fm.recordio, numpy as np;"
        "print(spark_fm.load(sys.argv[1]).predict(np.eye(12)).sum())",
        path,
    )

    assert float(done.stdout) == pytest.approx(spark_fm.load(path).predict(np.eye(N)).sum())


@pytest.mark.parametrize("name", sorted(set(spark_fm.__all__) - {"__version__"}))
def test_names_that_need_spark_say_what_to_install(name: str) -> None:
    done = run_without_pyspark(f"from spark_fm import {name}")

    if name in ("LoadedModel", "load"):
        assert done.returncode == 0, done.stderr
    else:
        assert (
            f"ImportError: spark_fm.{name} needs PySpark: pip install 'spark-fm[spark]'"
            in done.stderr
        )


@pytest.mark.parametrize("command", ["train", "tune", "evaluate", "score"])
def test_commands_that_need_spark_say_what_to_install(command: str) -> None:
    done = run_without_pyspark(COMMAND, command, "--help")

    assert done.returncode == 1
    assert f"spark-fm {command} needs PySpark: pip install 'spark-fm[spark]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["import", "export", "inspect", "convert", "serve"])
def test_the_other_commands_run_without_it(command: str) -> None:
    assert run_without_pyspark(COMMAND, command, "--help").returncode == 0


def test_their_errors_can_be_told_without_it(tmp_path: Path) -> None:
    done = run_without_pyspark(
        COMMAND, "convert", "--input", str(tmp_path / "none.libsvm"),
        "--output", str(tmp_path / "out.pbr"),
    )  # fmt: skip

    assert done.returncode == 2
    assert "none.libsvm" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_older_pyspark_is_named() -> None:
    older = "import sys, types; pyspark = sys.modules['pyspark'] = types.ModuleType('pyspark');"
    code = f"{older} pyspark.__version__ = '3.5.6'; from spark_fm import FactorizationMachine"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "spark_fm.FactorizationMachine needs PySpark 4.0 or newer; this is 3.5.6." in done.stderr
