"""A model as plain text that people can read, with the same scores bit for bit.

The layout is described in docs/artifacts.md: lines of ``name value``, a line that names the
columns, one line a feature, and a line ``end``.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.files import (
    BYTE_ORDER_MARK,
    atomic_write,
    local_path,
    open_plain_file,
)
from spark_fm.formats.models.libfm import read_lines, write_lines
from spark_fm.formats.models.native import (
    LOSS_OF_PREDICTOR,
    SavedModel,
    check_sizes,
    checked_weights,
    imported_model,
)

FIRST = "# spark_fm model text 1"
NOTES = """\
# score(x) = bias + sum of w_i x_i + sum over i < j of <v_i, v_j> x_i x_j
# A binary_classifier's score is 1 / (1 + exp(-that)); its label is 1 from the threshold on.
# Features without a line add nothing. All but the bias and the threshold are float32.
"""
END = b"end\n"
HEADER_BYTES = 2**20
FIELDS = ("predictor_type", "threshold", "feature_dim", "num_factors", "features", "bias")


def write_text(path: str, model: SavedModel) -> None:
    """Write a model as a local text file, with a line for each feature that has a row.

    O(size of the model) in time, a few MiB in memory. The same model has the same bytes.
    """
    weights = model.weights
    fields = {
        "predictor_type": model.params["predictorType"],
        "threshold": float(model.params["threshold"]),
        "feature_dim": weights.feature_dim,
        "num_factors": weights.k,
        "features": len(weights.table),
        "bias": weights.bias,
    }
    columns = ["id", "w", *(f"v{f}" for f in range(1, weights.k + 1))]

    def block(rows: slice) -> list[NDArray[np.int32 | np.float32]]:
        ids = weights.features
        shown = np.arange(rows.start, rows.stop, dtype=np.int32) if ids is None else ids[rows]
        return [shown, weights.linear[rows], *weights.factors[rows].T]

    with atomic_write(local_path(path, "path")) as file:
        header = "".join(f"{name} {value}\n" for name, value in fields.items())
        file.write(f"{FIRST}\n{NOTES}{header}{' '.join(columns)}\n".encode())
        write_lines(file, len(weights.table), block)
        file.write(END)


def read_text(
    path: str, *, predictor_type: str | None = None, threshold: float | None = None
) -> SavedModel:
    """Read what ``write_text`` wrote.

    ``threshold`` replaces the file's; another ``predictor_type`` than the file's raises
    InvalidParamError. Raises ModelFormatError for any other file, one that is cut, or a bad line.
    """
    with open_plain_file(path) as stream:
        data = memoryview(stream.read().removeprefix(BYTE_ORDER_MARK))
    if bytes(data[: len(FIRST) + 1]).rstrip() != FIRST.encode():
        raise ModelFormatError(
            f"{path} is no model text of spark_fm: its first line is not {FIRST!r}."
        )
    if bytes(data[-len(END) - 1 :]) != b"\n" + END:
        raise ModelFormatError(f"{path} is cut: its last line is not 'end'. Copy it again.")
    titles = re.compile(rb"^id w( v\d+)+\n", re.MULTILINE).search(data, 0, HEADER_BYTES)
    if titles is None:
        raise ModelFormatError(f"{path} is damaged: it has no line 'id w v1 ...'.")
    fields = _fields(bytes(data[: titles.start()]), path)
    k, feature_dim = _whole(fields, "num_factors", path), _whole(fields, "feature_dim", path)
    check_sizes(feature_dim, k, path)
    if len(titles.group().split()) != k + 2:
        raise ModelFormatError(f"{path} is damaged: its columns are not those of {k} factors.")
    ids, linear, *factors = read_lines(
        data[titles.end() : -len(END)], n_columns=k + 2, has_ids=True,
        source=f"{path}, in the lines after 'id w v1'",
    )  # fmt: skip
    _check_ids(ids, feature_dim, _whole(fields, "features", path), path)
    table = np.stack([*factors, linear], axis=1)
    features = None if len(ids) == feature_dim else np.array(ids, np.int32)
    weights = checked_weights(
        _real(fields, "bias", path), table, feature_dim, features=features, source=path
    )
    kind = fields["predictor_type"]
    if kind not in LOSS_OF_PREDICTOR:
        raise ModelFormatError(f"{path} is damaged: predictor_type is {kind[:40]!r}.")
    if predictor_type not in (None, kind):
        raise InvalidParamError(
            f"predictorType={predictor_type!r} was asked for, but {path} is a {kind}. Leave it out."
        )
    kept = _real(fields, "threshold", path) if threshold is None else threshold
    return imported_model(weights, kind, threshold=kept, origin={"format": "text"})


def _fields(header: bytes, path: str) -> dict[str, str]:
    lines = header.decode(errors="replace").splitlines()
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    found = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    if len(found) != len(pairs) or set(found) != set(FIELDS):
        raise ModelFormatError(
            f"{path} is damaged: its header has to have a line 'name value' for each of "
            f"{', '.join(FIELDS)}, and no other."
        )
    return found


def _whole(fields: dict[str, str], name: str, path: str) -> int:
    text = fields[name]
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise ModelFormatError(f"{path} is damaged: {name} is {text[:40]!r}, no whole number.")
    return int(text)


def _real(fields: dict[str, str], name: str, path: str) -> float:
    try:
        number = float(fields[name])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ModelFormatError(f"{path} is damaged: {name} is {fields[name][:40]!r}, no number.")
    return number


def _check_ids(ids: NDArray[np.int32], feature_dim: int, n_rows: int, path: str) -> None:
    if len(ids) != n_rows:
        raise ModelFormatError(
            f"{path} is damaged: it has {len(ids):,} lines of features, and tells of {n_rows:,}."
        )
    if not len(ids):
        return
    falls = np.flatnonzero(ids[1:] <= ids[:-1])
    if len(falls) or ids[0] < 0 or ids[-1] >= feature_dim:
        seen = ids[falls[0] + 1] if len(falls) else ids[0] if ids[0] < 0 else ids[-1]
        raise ModelFormatError(
            f"{path} is damaged: feature {seen} is out of order or outside 0 to {feature_dim - 1}."
        )
