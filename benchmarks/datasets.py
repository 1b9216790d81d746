"""Load the real sets that figures are compared on, with the splits that peers used.

The folder is named by the environment variable ``SPARK_FM_DATA``. Only a9a ships with
the project (``examples/data``).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from examples.real_sets import (
    Rows,
    Split,
    data_folder,
    ml100k,
    ml100k_binary,
    ml100k_regression,
    mnist,
    mnist0,
    to_frame,
)

__all__ = [
    "HELD_BACK", "SPLITS", "Rows", "Split", "a9a", "agaricus", "criteo", "criteo_numbers",
    "data_folder", "frappe", "ml100k_binary", "ml100k_regression", "ml100k_ub_binary",
    "ml100k_ub_regression", "mnist", "mnist0", "to_frame",
]  # fmt: skip
SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "data"


def a9a() -> Split:
    """Load UCI Adult: 32,561 / 16,281 rows, 123 binary features."""
    train, test = (_libsvm(SHIPPED / name, 123, first=1) for name in ("a9a.gz", "a9a.t.gz"))
    return Split("a9a", train, test, "binary_classifier", 8)


def agaricus() -> Split:
    """Load UCI Mushroom: 6,513 / 1,611 rows, 126 features."""
    folder = data_folder() / "agaricus"
    train, test = (
        _libsvm(folder / f"agaricus.txt.{part}.gz", 127, first=0) for part in ("train", "test")
    )
    return Split("agaricus", train, test, "binary_classifier", 8)


def ml100k_ub_regression() -> Split:
    """Split the ratings the other published way; no default was chosen on it."""
    return ml100k("ub", "ml100k-ub-regression", regression=True)


def ml100k_ub_binary() -> Split:
    """Split the other published way, binary; no default was chosen on it."""
    return ml100k("ub", "ml100k-ub-binary", regression=False)


def frappe() -> Split:
    """App usage in context: 57,722 / 28,860 rows, 5,382 features."""
    folder = data_folder() / "frappe"
    train, test = (
        _libsvm(folder / f"frappe.{part}.libfm.gz", 5382, first=0)
        for part in ("validation", "test")
    )
    return Split("frappe", train, test, "binary_classifier", 16)


def criteo(num_factors: int) -> Split:
    """Click log, heads of the Criteo Kaggle set: 7,200 / 391 rows, 39 columns hashed to 2^18.

    Every value is a category, integers too; a missing one is no feature.
    """
    train, test = (_criteo_rows(part) for part in ("train", "test"))
    return Split(f"criteo-{num_factors}", train, test, "binary_classifier", num_factors)


def criteo_numbers() -> Split:
    """Click log as a newcomer hashes it: the 13 integer columns as unscaled numbers."""
    train, test = (_criteo_rows(part, n_numbers=13) for part in ("train", "test"))
    return Split("criteo-numbers", train, test, "binary_classifier", 16)


def _criteo_rows(part: str, *, n_numbers: int = 0) -> Rows:
    """Return rows whose first ``n_numbers`` columns are numbers, the others categories."""
    n_features = 2**18
    labels, indices, values, indptr = [], [], [], [0]
    with gzip.open(data_folder() / "criteo" / f"criteo_{part}.tsv.gz", "rt") as lines:
        for line in lines:
            label, *cells = line.rstrip("\n").split("\t")
            labels.append(float(label))
            for column, cell in enumerate(cells):
                if not cell:
                    continue
                is_number = column < n_numbers
                name = f"I{column}" if is_number else f"{column}={cell}"
                indices.append(zlib.crc32(name.encode()) % n_features)
                values.append(float(cell) if is_number else 1.0)
            indptr.append(len(indices))
    matrix = sp.csr_matrix((values, indices, indptr), shape=(len(labels), n_features))
    matrix.sum_duplicates()
    return Rows(matrix, np.array(labels))


SPLITS: dict[str, Callable[[], Split]] = {
    "a9a": a9a,
    "ml100k-regression": ml100k_regression,
    "ml100k-binary": ml100k_binary,
    "frappe": frappe,
    "mnist0": mnist0,
    "criteo-8": partial(criteo, 8),
    "criteo-16": partial(criteo, 16),
    "criteo-64": partial(criteo, 64),
    "criteo-numbers": criteo_numbers,
}
HELD_BACK: dict[str, Callable[[], Split]] = {
    "agaricus": agaricus,
    "ml100k-ub-regression": ml100k_ub_regression,
    "ml100k-ub-binary": ml100k_ub_binary,
}


def _libsvm(path: Path, n_features: int, first: int) -> Rows:
    labels, indices, values, indptr = [], [], [], [0]
    with gzip.open(path, "rt") as lines:
        for line in lines:
            tokens = line.split()
            if tokens:
                labels.append(float(tokens[0]) > 0)
                for token in tokens[1:]:
                    index, value = token.split(":")
                    indices.append(int(index) - first)
                    values.append(float(value))
                indptr.append(len(indices))
    matrix = sp.csr_matrix((values, indices, indptr), shape=(len(labels), n_features))
    return Rows(matrix, np.array(labels, np.float64))
