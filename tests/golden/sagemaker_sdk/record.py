"""Record what SageMaker's Python SDK writes and reads, for tests/formats/test_sagemaker_sdk.py.

In an environment of its own: ``pip install 'sagemaker<3' scipy``. The model must be served from
the checkout (``saved_model`` of tests/formats/models.py):

    python record.py http://localhost:8080
"""

import io
import json
import shutil
import sys
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import scipy.sparse as sp
from sagemaker.amazon.common import (
    read_records,
    write_numpy_to_dense_tensor,
    write_spmatrix_to_sparse_tensor,
)
from sagemaker.deserializers import RecordDeserializer
from sagemaker.local.entities import _LocalTransformJob
from sagemaker.serializers import JSONLinesSerializer, JSONSerializer, RecordSerializer

HERE = Path(__file__).resolve().parent
DENSE = np.array([[0.5, -1.0, 0.0, 2.25], [1e-3, 3.0, -0.125, 0.0], [0.0, 0.0, 0.0, 0.0]])
LABELS = np.array([1.0, 0.0, 1.0])


def files() -> dict[str, bytes]:
    """Return training files and request bodies of each kind of number."""
    made = {}
    for kind in ("float32", "float64", "int64"):
        X, y = (DENSE * 8).astype(kind), LABELS.astype(kind)
        for name, write, matrix in (
            ("dense", write_numpy_to_dense_tensor, X),
            ("sparse", write_spmatrix_to_sparse_tensor, sp.csr_matrix(X)),
        ):
            file = io.BytesIO()
            write(file, matrix, y)
            made[f"{name}-{kind}.pbr"] = file.getvalue()
    made["request.pbr"] = RecordSerializer().serialize(DENSE.astype("float32")).read()
    instances = [{"features": row} for row in DENSE.tolist()]
    made["request.json"] = JSONSerializer().serialize({"instances": instances}).encode()
    made["request.jsonl"] = JSONLinesSerializer().serialize(instances).encode()
    lines = [JSONSerializer().serialize({"instances": [row]}) for row in instances]
    made["documents.json"] = "\n".join(lines).encode() + b"\n"
    return made


def transformed(url: str, file: str, **how: str) -> bytes:
    """Return the output of the SDK's local transform job for a file, from the server at ``url``."""

    def invoke(data, _name, content_type, accept):
        body = data if isinstance(data, bytes) else data.encode()
        headers = {"Content-Type": content_type} | ({"Accept": accept} if accept else {})
        request = urllib.request.Request(f"{url}/invocations", body, headers)
        return {"Body": urllib.request.urlopen(request)}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir(), target.mkdir()
        shutil.copy(HERE / file, source)
        session = MagicMock()
        session.config = None
        session.sagemaker_runtime_client.invoke_endpoint = invoke
        job = _LocalTransformJob.__new__(_LocalTransformJob)
        job.name, job.local_session, job.container = "job", session, MagicMock()
        address = {"S3DataSource": {"S3Uri": source.as_uri(), "S3DataType": "S3Prefix"}}
        job._perform_batch_inference(
            {"DataSource": address, "ContentType": how["type"], "SplitType": how["split"]},
            {"S3OutputPath": target.as_uri(), "AssembleWith": how["assemble"]},
            BatchStrategy=how["strategy"],
            MaxPayloadInMB="6",
        )
        return next(target.rglob("*.out")).read_bytes()


def main(url: str) -> None:
    """Write all files of this folder."""
    for name, data in files().items():
        (HERE / name).write_bytes(data)
    words = ("type", "split", "assemble", "strategy")
    transforms = {
        "documents.json": ("application/json", "Line", "Line", "SingleRecord"),
        "request.jsonl": ("application/jsonlines", "Line", "None", "MultiRecord"),
        "request.json": ("application/json", "None", "None", "SingleRecord"),
    }
    transforms = {name: dict(zip(words, how, strict=True)) for name, how in transforms.items()}
    for name, how in transforms.items():
        (HERE / f"{name}.out").write_bytes(transformed(url, name, **how))
    request = urllib.request.Request(
        f"{url}/invocations",
        (HERE / "request.pbr").read_bytes(),
        {"Content-Type": "application/x-recordio-protobuf"},
    )
    response = urllib.request.urlopen(request).read()
    (HERE / "response.pbr").write_bytes(response)
    body = io.BytesIO(response)
    records = RecordDeserializer().deserialize(body, "application/x-recordio-protobuf")
    read = {
        label: [list(r.label[label].float32_tensor.values) for r in records]
        for label in ("score", "predicted_label")
    }
    assert len(read_records(io.BytesIO(response))) == len(records)
    facts = {"sagemaker": version("sagemaker"), "transforms": transforms, "response": read}
    (HERE / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
