"""Explanations of scores, and the strengths of features and groups; driver only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from spark_fm.errors import InvalidParamError
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.predict import table_positions
from spark_fm.learner.spec import require
from spark_fm.learner.weights import FMWeights
from spark_fm.ml.base import FittedModel
from spark_fm.ml.plots import LINEAR, draw_explanation, draw_strengths
from spark_fm.scoring.columns import force_row_input, with_structs
from spark_fm.scoring.explain import (
    ALL_ROWS,
    EXPLANATION,
    FEATURE_SUMS,
    GROUP_SUMS,
    LINEAR_PART,
    ExplainTask,
    FeatureNames,
    FeatureSumsTask,
    GroupSumsTask,
    feature_names,
)
from spark_fm.spark.broadcast import broadcast, session_broadcast
from spark_fm.spark.schema import check_features, check_outputs, column_of, without_metadata
from spark_fm.spark.session import SparkCluster, tagged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PAIRS = 1000
MOST_GROUPS = 1000
BYTES_PER_NAME = 40

Groups = Mapping[str, Iterable[int]]


class ExplainMethods(FittedModel):
    """The methods of a model that explain its scores."""

    def explain(
        self,
        dataset: DataFrame,
        *,
        numPairs: int = 10,
        numLinear: int | None = None,
        explanationCol: str = "explanation",
    ) -> DataFrame:
        """Split the margin of each row into bias, linear and pair contributions.

        Parameters
        ----------
        dataset : DataFrame
            With a features column; its ml_attr metadata, if any, names the features.
        numPairs : int
            Strongest pairs to list per row (0 to 1000).
        numLinear : int, optional
            Strongest linear parts to list per row (>= 0); None lists all.
        explanationCol : str
            Name of the column to add.

        Returns
        -------
        DataFrame
            All columns, and a struct of ``margin``, ``bias``, ``linear`` (array of feature,
            name, value, contribution ``w_j x_j``), ``other_linear``, ``pairs`` (array of
            feature_a, name_a, feature_b, name_b, contribution ``<v_a, v_b> x_a x_b``) and
            ``other_pairs``. Arrays are sorted by absolute contribution, ties by feature.
            ``margin`` is bias plus all listed and other parts: the log-odds of label 1, or
            the regressor's value, in float64.

        Raises
        ------
        InvalidParamError, InvalidColumnError
            At once. Rows that cannot be scored are treated as in ``transform``.

        Notes
        -----
        O(nnz^2 k) per row for all its pairs, in compiled code on Spark's workers: about
        1 ms for 784 non-zeros and k = 16. See docs/explaining.md.
        """
        is_legal = isinstance(numPairs, Integral) and 0 <= numPairs <= MOST_PAIRS
        require(is_legal, "numPairs", numPairs, f"a whole number from 0 to {MOST_PAIRS}")
        is_legal = numLinear is None or (isinstance(numLinear, Integral) and numLinear >= 0)
        require(is_legal, "numLinear", numLinear, "None for all, or a whole number from 0")
        reader = self._reader(dataset)
        check_outputs(dataset, {"explanationCol": explanationCol})
        session = dataset.sparkSession
        named = feature_names(column_of(dataset, reader.features_col, "featuresCol"))
        names = session_broadcast(
            session, FeatureNames.of(named), n_bytes=BYTES_PER_NAME * len(named)
        )
        task = ExplainTask(self._broadcast(session), names, reader, numPairs, numLinear)
        result, internal = with_structs(dataset, task, EXPLANATION)
        # PySpark 4.0 returns a struct of nulls for a null struct.
        is_explained = F.col(internal)["margin"].isNotNull()
        if reader.handle_invalid == "skip":
            result = result.where(is_explained)
        explanation = F.when(is_explained, F.col(internal)).alias(explanationCol)
        return result.select("*", explanation).drop(internal)

    def plot_explanation(
        self, explanation: Row | Mapping[str, Any], *, top: int = 12, path: str | None = None
    ) -> Figure:
        """Draw one row's explanation as a waterfall, from the bias to the margin.

        Parameters
        ----------
        explanation : Row or dict
            What ``explain`` wrote for a row: ``explained.first()["explanation"]``.
        top : int
            Parts to show by themselves, the strongest of the listed ones (>= 1).
        path : str, optional
            File to save the picture to; the suffix gives the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        InvalidParamError
            For anything but an explanation; a row that cannot be scored has none.
        ImportError
            Without matplotlib: install ``spark-fm[plot]``.
        """
        require(isinstance(top, Integral) and top >= 1, "top", top, "a whole number of at least 1")
        is_dict = isinstance(explanation, Mapping)
        fields = explanation if is_dict else getattr(explanation, "__fields__", [])
        require({*EXPLANATION.names} <= {*fields}, "explanation", explanation,
                'what explain wrote for a row, as in explained.first()["explanation"]')  # fmt: skip
        score = float(LOSSES[self._loss].link(np.array(explanation["margin"])))
        return draw_explanation(explanation, score, top=top, path=path)

    def feature_strengths(self, dataset: DataFrame) -> pd.DataFrame:
        """Measure how strongly each feature acts on the margins of a DataFrame's rows.

        Parameters
        ----------
        dataset : DataFrame
            With a features column; its ml_attr metadata, if any, names the features.

        Returns
        -------
        pandas.DataFrame
            One row per feature of the model that is not zero everywhere, strongest first:
            ``feature``, ``name`` (None if unknown), ``n_rows`` in which it is not zero, and
            means over all rows of absolute contributions: ``linear`` of ``w_j x_j``,
            ``pairs`` of the sum of all its pairs, ``total`` of both together, by which the
            margin would change if the feature were 0.

        Notes
        -----
        One Spark job, O(nnz k) per row. The driver collects one row per feature.
        """
        session = dataset.sparkSession
        task = FeatureSumsTask(self._broadcast(session), self._reader(dataset))
        columns = [F.sum(name).alias(name) for name in FEATURE_SUMS.names[1:]]
        with tagged(session, "strengths"):
            sums = self._features_only(dataset).mapInArrow(task, FEATURE_SUMS)
            table = sums.groupBy("feature").agg(*columns).toPandas()
        is_total = table["feature"] == ALL_ROWS
        n_rows = int(table.loc[is_total, "n_rows"].sum())
        table = table[~is_total]
        named = feature_names(column_of(dataset, self.getFeaturesCol(), "featuresCol"))
        table.insert(1, "name", names_of(table["feature"].to_numpy(), named))
        for column in ("linear", "pairs", "total"):
            table[column] /= n_rows
        return table.sort_values(["total", "feature"], ascending=[False, True], ignore_index=True)

    def group_strengths(self, dataset: DataFrame, groups: Groups | None = None) -> pd.DataFrame:
        """Measure how strongly groups of features act, alone and in pairs.

        Parameters
        ----------
        dataset : DataFrame
            With a features column.
        groups : mapping of str to iterable of int, optional
            Feature ids of each group, such as ``{"user": range(0, 943), ...}``; no id twice,
            at most 1000 groups. Ids in no group are ignored. None groups features by the
            column that their ml_attr names come from.

        Returns
        -------
        pandas.DataFrame
            One row per group, with means over rows of absolute contributions: ``linear`` of
            the sum of the group's linear parts, and a column for each group, symmetric, of
            the sum of the pairs between both, or within the group.

        Raises
        ------
        InvalidParamError
            For a feature outside the model's range or in two groups.

        Notes
        -----
        One Spark job, O(nnz k + t^2 k) for a row with non-zeros in t groups.
        """
        reader = self._reader(dataset)
        if groups is None:
            groups = groups_by_name(dataset, reader.features_col)
        names = list(groups)
        group_of = _group_of_rows(self.weights, groups)
        session = dataset.sparkSession
        with (
            tagged(session, "strengths"),
            broadcast(SparkCluster.of(session), group_of, n_bytes=group_of.nbytes) as shared_groups,
        ):
            task = GroupSumsTask(self._broadcast(session), reader, shared_groups, len(names))
            sums = self._features_only(dataset).mapInArrow(task, GROUP_SUMS)
            table = sums.groupBy("a", "b").agg(F.sum("total").alias("total")).toPandas()
        a, b, total = (table[name].to_numpy() for name in GROUP_SUMS.names)
        n_rows = total[a == ALL_ROWS].sum()
        strengths = np.zeros((len(names), 1 + len(names)))  # linear, then pairs by group
        is_part = a != ALL_ROWS
        strengths[a[is_part], b[is_part] + 1] = total[is_part]
        is_pair = is_part & (b != LINEAR_PART)
        strengths[b[is_pair], a[is_pair] + 1] = total[is_pair]
        with np.errstate(invalid="ignore"):
            return pd.DataFrame(strengths / n_rows, index=names, columns=[LINEAR, *names])

    def plot_strengths(
        self,
        dataset: DataFrame,
        groups: Groups | None = None,
        *,
        top: int = 15,
        path: str | None = None,
    ) -> Figure:
        """Draw the strongest features, and the strengths of groups if they are given.

        Parameters
        ----------
        dataset : DataFrame
        groups : mapping of str to iterable of int, optional
            As for ``group_strengths``; without it only features are drawn.
        top : int
            Features to show (>= 1).
        path : str, optional
            File to save the picture to; the suffix gives the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib: install ``spark-fm[plot]``.
        """
        require(isinstance(top, Integral) and top >= 1, "top", top, "a whole number of at least 1")
        features = self.feature_strengths(dataset)
        by_group = None if groups is None else self.group_strengths(dataset, groups)
        return draw_strengths(features, by_group, top=top, path=path)

    def to_frame(self, dataset: DataFrame | None = None) -> pd.DataFrame:
        """Return the parameters, one row per feature.

        Parameters
        ----------
        dataset : DataFrame, optional
            The ml_attr metadata of its features column names the features. The model does
            not store names.

        Returns
        -------
        pandas.DataFrame
            ``feature``, ``name`` if a DataFrame is given (None for a feature without one),
            ``linear``, ``factor_0`` to ``factor_{k-1}``. Ids that the model does not store,
            because training never saw them, are omitted.
        """
        weights = self.weights
        ids = weights.features
        if ids is None:
            ids = np.arange(weights.feature_dim, dtype=np.int32)
        columns: dict[str, object] = {"feature": ids}
        if dataset is not None:
            name = self.getFeaturesCol()
            check_features(dataset, name)
            columns["name"] = names_of(ids, feature_names(column_of(dataset, name, "featuresCol")))
        columns["linear"] = weights.linear
        factors = pd.DataFrame(weights.factors, columns=[f"factor_{f}" for f in range(weights.k)])
        return pd.concat([pd.DataFrame(columns), factors], axis=1)

    def _features_only(self, dataset: DataFrame) -> DataFrame:
        name = self.getFeaturesCol()
        return force_row_input(dataset, name).select(without_metadata(name, "features"))


def groups_by_name(dataset: DataFrame, name: str) -> dict[str, list[int]]:
    """Group features by the column that their ml_attr names come from.

    ``VectorAssembler`` names a feature after its input column, followed by an underscore and
    the attribute if the column is a vector. The group is the longest column name that
    matches, else the feature's name up to its last underscore.
    """
    named = feature_names(column_of(dataset, name, "featuresCol"))
    if not named:
        raise InvalidParamError(
            f"groups=None needs names of features, and the metadata of {name!r} has none. Give "
            "groups={'user': range(0, 943), ...}, or assemble the column with VectorAssembler."
        )
    columns = sorted(dataset.schema.names, key=len, reverse=True)
    groups: dict[str, list[int]] = {}
    for feature, feature_name in named.items():
        matches = (c for c in columns if feature_name == c or feature_name.startswith(f"{c}_"))
        group = next(matches, feature_name.rpartition("_")[0] or feature_name)
        groups.setdefault(group, []).append(feature)
    return groups


def _group_of_rows(weights: FMWeights, groups: Groups) -> NDArray[np.int32]:
    """Return the number of the group of each row of the weights' table, -1 for none."""
    if not 1 <= len(groups) <= MOST_GROUPS:
        raise InvalidParamError(
            f"groups has {len(groups)} groups; allowed are 1 to {MOST_GROUPS}, because every pair "
            "of them is measured. Join small groups."
        )
    if LINEAR in groups:
        raise InvalidParamError(
            f"groups has a group {LINEAR!r}, which is the name of a column of the result. Call "
            "the group something else."
        )
    group_of = np.full(len(weights.table), -1, np.int32)
    for number, (name, features) in enumerate(groups.items()):
        ids = np.unique(np.array(list(features), np.int64))
        outside = ids[(ids < 0) | (ids >= weights.feature_dim)]
        if len(outside):
            raise InvalidParamError(
                f"groups[{name!r}] holds feature {outside[0]}; the model has features 0 to "
                f"{weights.feature_dim - 1}."
            )
        rows = ids.astype(np.int32)
        if weights.features is not None:
            rows = table_positions(weights.features, rows)
            rows = rows[rows >= 0]
        twice = rows[group_of[rows] >= 0]
        if len(twice):
            feature = twice[0] if weights.features is None else weights.features[twice[0]]
            raise InvalidParamError(
                f"feature {feature} is in groups {list(groups)[group_of[twice[0]]]!r} and "
                f"{name!r}. Put every feature in one group."
            )
        group_of[rows] = number
    return group_of


def names_of(ids: NDArray[np.int32], named: dict[int, str]) -> NDArray[np.object_]:
    """Return the name of each feature, or None."""
    return np.array([named.get(int(j)) for j in ids], object)
