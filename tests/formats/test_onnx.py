"""onnxruntime scores an exported model as we do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_fm.errors import InvalidParamError
from spark_fm.formats.models.native import SavedModel, imported_model
from spark_fm.formats.models.onnx import write_onnx
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights, random_batch

onnxruntime = pytest.importorskip("onnxruntime")

# float32 sums in another order, of at most 6 entries x 4 factors of size 1.
CLOSE = {"rel": 1e-5, "abs": 1e-5}
WHOLE = planted_weights(30, 4, seed=1)
SEEN = FMWeights(0.25, WHOLE.table[:9].copy(), 30, np.arange(2, 29, 3, dtype=np.int32))
NONE = FMWeights(0.25, np.zeros((0, 5), np.float32), 30, np.zeros(0, np.int32))
ROWS = random_batch(200, 30, seed=3)


def session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def padded(batch: CsrBatch) -> dict[str, np.ndarray]:
    longest = int(np.diff(batch.indptr).max()) + 2
    indices = np.zeros((batch.n_rows, longest), np.int64)
    values = np.zeros((batch.n_rows, longest), np.float32)
    for r, (start, stop) in enumerate(zip(batch.indptr[:-1], batch.indptr[1:], strict=True)):
        indices[r, : stop - start] = batch.indices[start:stop]
        values[r, : stop - start] = batch.values[start:stop]
    return {"indices": indices, "values": values}


def dense(batch: CsrBatch) -> dict[str, np.ndarray]:
    X = np.zeros((batch.n_rows, 30), np.float32)
    X[np.repeat(np.arange(batch.n_rows), np.diff(batch.indptr)), batch.indices] = batch.values
    return {"features": X}


def model(weights: FMWeights, kind: str, threshold: float = 0.3) -> SavedModel:
    return imported_model(weights, kind, threshold=threshold, origin={})


@pytest.mark.parametrize("weights", [WHOLE, SEEN, NONE], ids=["all rows", "rows seen", "no row"])
@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
@pytest.mark.parametrize("inputs", ["dense", "sparse"])
def test_onnxruntime_gives_our_scores_and_labels(
    tmp_path: Path, inputs: str, kind: str, weights: FMWeights
) -> None:
    ours = model(weights, kind)
    write_onnx(str(tmp_path / "m.onnx"), ours, inputs=inputs)
    running = session(str(tmp_path / "m.onnx"))

    outputs = running.run(None, dense(ROWS) if inputs == "dense" else padded(ROWS))

    expected = ours.predict(ROWS)
    assert outputs[0].dtype == np.float32
    assert outputs[0] == pytest.approx(expected, **CLOSE)
    names = [output.name for output in running.get_outputs()]
    if kind == "regressor":
        assert names == ["score"]
        return
    assert names == ["score", "predicted_label"]
    sure = np.abs(expected - 0.3) > 1e-5
    assert outputs[1][sure].tolist() == (expected >= 0.3)[sure].astype(float).tolist()


@pytest.mark.parametrize("inputs", ["dense", "sparse"])
def test_no_rows_and_no_entries_are_scored(tmp_path: Path, inputs: str) -> None:
    write_onnx(str(tmp_path / "m.onnx"), model(WHOLE, "regressor"), inputs=inputs)
    running = session(str(tmp_path / "m.onnx"))
    nothing = random_batch(3, 30, seed=1, lengths=(0, 0))
    feed = dense(nothing) if inputs == "dense" else {
        "indices": np.zeros((3, 0), np.int64), "values": np.zeros((3, 0), np.float32)
    }  # fmt: skip

    assert running.run(None, feed)[0] == pytest.approx([WHOLE.bias] * 3)
    assert running.run(None, {name: array[:0] for name, array in feed.items()})[0].shape == (0,)


def test_ids_of_two_billion_features_are_looked_up(tmp_path: Path) -> None:
    ids = np.array([7, 2**31 - 2], np.int32)
    huge = model(FMWeights(0.5, WHOLE.table[:2].copy(), 2**31 - 1, ids), "regressor")
    write_onnx(str(tmp_path / "m.onnx"), huge, inputs="sparse")
    rows = CsrBatch.from_arrays(
        np.array([0, 2, 3]), np.array([7, 2**31 - 2, 8]), np.array([2.0, -1.0, 9.0], np.float32)
    )

    scores = session(str(tmp_path / "m.onnx")).run(None, padded(rows))[0]

    assert scores == pytest.approx(huge.predict(rows), **CLOSE)
    assert scores[1] == pytest.approx(0.5)  # a feature without a row
    assert (tmp_path / "m.onnx").stat().st_size < 5000


def test_a_label_is_1_from_the_threshold_on(tmp_path: Path) -> None:
    half = FMWeights(0.0, np.zeros((30, 5), np.float32), 30)  # every score is exactly 0.5
    for threshold, label in ((0.5, 1.0), (np.nextafter(0.5, 1), 0.0)):
        path = str(tmp_path / "m.onnx")
        write_onnx(path, model(half, "binary_classifier", float(threshold)))

        assert session(path).run(None, dense(ROWS))[1][0] == label


def test_an_index_outside_the_table_is_refused(tmp_path: Path) -> None:
    write_onnx(str(tmp_path / "m.onnx"), model(WHOLE, "regressor"), inputs="sparse")
    feed = {"indices": np.array([[30]]), "values": np.ones((1, 1), np.float32)}

    with pytest.raises(Exception, match="out of data bounds"):
        session(str(tmp_path / "m.onnx")).run(None, feed)


def test_the_file_says_what_it_holds_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_onnx(str(tmp_path / name), model(SEEN, "binary_classifier"), inputs="sparse")

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    known = session(str(tmp_path / "a")).get_modelmeta().custom_metadata_map
    assert known == {
        "predictor_type": "binary_classifier", "feature_dim": "30", "num_factors": "4",
        "threshold": "0.3",
    }  # fmt: skip


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = str(tmp_path / "m.onnx")
    large = np.broadcast_to(np.float32(0), (2**23, 65)).view()
    too_large = model(FMWeights(0.0, large, 2**23), "regressor")

    with pytest.raises(InvalidParamError, match=r"2,348,810,240 bytes of parameters"):
        write_onnx(path, too_large)
    with pytest.raises(InvalidParamError, match="inputs='csr' is not allowed"):
        write_onnx(path, model(WHOLE, "regressor"), inputs="csr")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"spark-fm\[onnx\]"):
        write_onnx(path, model(WHOLE, "regressor"))
    assert list(tmp_path.iterdir()) == []
