"""Names of features, from a DataFrame's metadata to workers and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql.types import StructType


def feature_names(schema: StructType, name: str) -> dict[int, str]:
    """Return the names that the column's ml_attr metadata give to features, by id."""
    attributes = schema[name].metadata.get("ml_attr", {}).get("attrs", {})
    named = {
        int(attribute["idx"]): str(attribute["name"])
        for group in attributes.values()
        for attribute in group
        if "idx" in attribute and attribute.get("name")
    }
    return dict(sorted(named.items()))


@dataclass(frozen=True)
class NameTable:
    """Names by feature id, in the form that tasks look them up in.

    Parameters
    ----------
    ids : ndarray of shape (n,), int32
        Sorted.
    names : pyarrow.Array of n strings
    """

    ids: NDArray[np.int32]
    names: pa.Array

    @classmethod
    def of(cls, named: Mapping[int, str]) -> NameTable:
        """Build the table of a mapping."""
        ids = sorted(named)
        return cls(np.array(ids, np.int32), pa.array([named[j] for j in ids], pa.string()))

    def of_features(self, features: NDArray[np.int32]) -> pa.Array:
        """Return the name of each feature, null where it has none."""
        if len(self.ids) == 0:
            return pa.nulls(len(features), pa.string())
        places = np.searchsorted(self.ids, features)
        places[places == len(self.ids)] = 0
        return self.names.take(pa.array(places, mask=self.ids[places] != features))
