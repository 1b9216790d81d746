"""What one Record message says: a row, or the reason why it is none.

The protobuf library parses it; slow and sure, for the records that the compiled reader
(``spark_fm.formats.decoding``) leaves to it, and as its twin in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from spark_fm.formats.record_pb2 import Record  # type: ignore[attr-defined]  # made at import
from spark_fm.learner.csr import MAX_FEATURE_ID

TENSORS = ("float32_tensor", "float64_tensor", "int32_tensor")


class MalformedMessageError(ValueError):
    """A payload is no row; the text says why."""


class NotAMessageError(MalformedMessageError):
    """A payload is no message at all, so that its length may be wrong too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of features.

    Parameters
    ----------
    indices : ndarray of shape (nnz,), int32
        In the order of the record: not always sorted, sometimes repeated.
    values : ndarray of shape (nnz,), float64
    width : int
        Number of features that the record claims; -1 when it does not say.
    is_dense : bool
        Every feature has a value.
    label : float
        NaN when the record has none.
    uid, metadata : bytes or None
    """

    indices: NDArray[np.int32]
    values: NDArray[np.float64]
    width: int
    is_dense: bool
    label: float
    uid: bytes | None
    metadata: bytes | None


def read_row(payload: bytes) -> Row:
    """Return the row of a serialized Record.

    Raises
    ------
    MalformedMessageError
        When the bytes are no Record, or one that is no row.

    Notes
    -----
    Values without keys are a dense row, a shape alone is a row of zeros, and keys may
    be unsorted or repeated (then their values add up). A matrix of one row is a row.
    """
    try:
        record = Record.FromString(payload)
        features = _tensor(record.features, "features")
        label = _label(record)
    except DecodeError as err:
        raise NotAMessageError(f"not a Record message ({err})") from None
    except UnicodeDecodeError:
        raise NotAMessageError("a feature or label name is not UTF-8") from None
    if features is None:
        names = ", ".join(sorted(map(repr, record.features)))[:100] or "none"
        raise MalformedMessageError(f'no features under the name "values" (names: {names})')
    values = np.array(features.values, np.float64)
    keys = np.array(features.keys, np.uint64)
    width = _width(list(features.shape))
    is_dense = not len(keys) and bool(len(values))
    if is_dense:
        keys = np.arange(len(values), dtype=np.uint64)
        if width not in (-1, len(values)):
            raise MalformedMessageError(f"{len(values)} dense values, but the shape says {width}")
        width = len(values)
    if len(keys) != len(values):
        raise MalformedMessageError(f"{len(keys)} keys for {len(values)} values")
    if len(keys) and width >= 0 and int(keys.max()) >= width:
        raise MalformedMessageError(
            f"key {int(keys.max())} is outside the {width} features of the shape"
        )
    if len(keys) and int(keys.max()) > MAX_FEATURE_ID:
        raise MalformedMessageError(f"key {int(keys.max())} is larger than {MAX_FEATURE_ID}")
    return Row(
        indices=keys.astype(np.int32),
        values=values,
        width=width,
        is_dense=is_dense,
        label=label,
        uid=record.uid if record.HasField("uid") else None,
        metadata=record.metadata if record.HasField("metadata") else None,
    )


def _tensor(entries: Any, what: str) -> Any:
    """Return the tensor under the name "values", None without one."""
    if "values" not in entries:
        return None
    value = entries["values"]
    kind = value.WhichOneof("value")
    if kind not in TENSORS:
        found = "bytes" if kind == "bytes" else "nothing"
        raise MalformedMessageError(f"the {what} hold {found}, not a tensor of numbers")
    return getattr(value, kind)


def _label(record: Any) -> float:
    tensor = _tensor(record.label, "labels")
    if tensor is None:
        return float("nan")
    if len(tensor.values) != 1 or len(tensor.keys):
        raise MalformedMessageError(
            f"a label of {len(tensor.values)} values and {len(tensor.keys)} keys; one value is "
            "what a row has"
        )
    return float(tensor.values[0])


def _width(shape: list[int]) -> int:
    if not shape:
        return -1
    if len(shape) > 1 and any(size != 1 for size in shape[:-1]):
        shown = str(shape[:8]) + ("..." if len(shape) > 8 else "")
        raise MalformedMessageError(f"a tensor of shape {shown}; a row has one dimension")
    if shape[-1] > MAX_FEATURE_ID + 1:
        raise MalformedMessageError(
            f"a shape of {shape[-1]} features; at most {MAX_FEATURE_ID + 1} are possible"
        )
    return int(shape[-1])
