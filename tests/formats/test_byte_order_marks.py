"""Text that begins with a byte-order mark is read as the same text without one."""

from __future__ import annotations

import codecs
import io
import json

import numpy as np
import pytest

from spark_fm.cli.inspect import KINDS
from spark_fm.cli.main import main
from spark_fm.cli.params import json_object
from spark_fm.cli.sagemaker_job import JobFolder, TrainingJob
from spark_fm.errors import RequestError
from spark_fm.formats.batch_transform import Scorer, Transform, transform
from spark_fm.formats.convert import Conversion, convert
from spark_fm.formats.files import list_files
from spark_fm.formats.models.native import read_model
from spark_fm.formats.requests import JSON, JSONLINES, decode_cells, decode_request, read_requests
from spark_fm.formats.responses import decode_response
from tests.formats.models import saved_model

MARK = codecs.BOM_UTF8
INSTANCE = b'{"features": [1, 0, 2, 0]}'
BODIES = {
    JSON: b'{"instances": [' + INSTANCE + b"]}",
    JSONLINES: INSTANCE + b"\n" + INSTANCE + b"\n",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize("content_type", BODIES)
def test_requests_and_responses(content_type):
    body = BODIES[content_type]
    plain = decode_request(body, content_type, feature_dim=4)

    found = decode_request(MARK + body, content_type, feature_dim=4)
    [streamed] = read_requests(io.BytesIO(MARK + body), content_type, feature_dim=4)
    cells = decode_cells([MARK + body] * 2, content_type, 4, one_each=False)

    assert found.values.tolist() == streamed.values.tolist() == plain.values.tolist()
    assert not cells.reasons
    assert cells.rows.n_rows == 2 * plain.n_rows
    answers = {JSON: b'{"predictions": [{"score": 0.5}]}', JSONLINES: b'{"score": 0.5}\n'}
    assert decode_response(MARK + answers[content_type], content_type).scores.tolist() == [0.5]


@pytest.mark.parametrize("content_type", BODIES)
def test_a_mark_alone_is_an_empty_body_and_one_further_on_is_an_error(content_type):
    with pytest.raises(RequestError, match="The body is empty"):
        decode_request(MARK, content_type, feature_dim=4)
    with pytest.raises(RequestError, match="cannot be read"):
        decode_request(BODIES[content_type].replace(b"1", MARK + b"1", 1), content_type,
                       feature_dim=4)  # fmt: skip


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("content_type", BODIES)
def test_files_of_batch_transform(model, content_type, join):
    outputs = []
    for start in (b"", MARK):
        outputs.append(io.BytesIO())
        job = Transform(content_type, content_type, "nowhere", join=join)
        transform(io.BytesIO(start + BODIES[content_type]), outputs[-1], Scorer(read_model(model)),
                  job)  # fmt: skip

    assert outputs[0].getvalue() == outputs[1].getvalue()


@pytest.mark.parametrize("text_format", ["libsvm", "libfm"])
@pytest.mark.parametrize("start", [b"", b"# rows\n", b"\n"])
def test_rows_as_text(tmp_path, text_format, start):
    path = tmp_path / f"a.{text_format}"
    path.write_bytes(MARK + start + b"1 1:2 3:4\n0 2:1\n")

    done = convert(Conversion((str(path),), str(tmp_path / "a.npz")))

    assert (done.n_rows, done.n_entries) == (2, 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_files_of_a_command_and_of_a_job(tmp_path, encoding):
    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding=encoding)
        return path

    params = write(tmp_path / "params.json", {"numFactors": 3})
    manifest = write(tmp_path / "a.manifest", [{"prefix": f"{tmp_path}/"}, "params.json"])
    job = JobFolder(tmp_path / "ml")
    write(job.config / "hyperparameters.json", {"epochs": "3"})
    write(job.config / "inputdataconfig.json", {"train": {}})
    write(job.data / "train" / "a", {})

    assert json_object(str(params), "--params") == {"numFactors": 3}
    assert [file.path for file in list_files([str(manifest)])] == [str(params)]
    assert TrainingJob.read(job).hyperparameters == {"epochs": "3"}


@pytest.mark.parametrize("kind", ["text", "libfm"])
def test_text_models(model, tmp_path, kind, capsys):
    path = tmp_path / "model.txt"
    back = str(tmp_path / "back")
    exported = ["export", "--to", kind, "--model", str(model), "--output", str(path)]
    imported = ["import", "--from", kind, str(path), "--model", back]
    assert main(exported) == 0
    path.write_bytes(MARK + path.read_bytes())
    capsys.readouterr()

    assert main([*imported, "--predictor-type", "binary_classifier"]) == 0
    assert main(["inspect", str(path), "--json"]) == 0

    before, after = read_model(model).weights, read_model(back).weights
    np.testing.assert_array_equal(after.table, before.table)
    assert f'"kind": "{KINDS[kind]}"' in capsys.readouterr().out
