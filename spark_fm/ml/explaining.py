"""Understanding a fitted model: rows explained, strengths, parameters; driver only."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm._version import __version__
from spark_fm.learner.spec import require
from spark_fm.ml.fitted import FittedModel
from spark_fm.ml.strengths import (
    Groups,
    draw_strengths,
    feature_strengths,
    group_strengths,
    names_of,
)
from spark_fm.scoring.columns import row_based, struct_column
from spark_fm.scoring.explain import EXPLANATION, ExplainTask, NameTable, feature_names
from spark_fm.spark.broadcast import lasting_handle
from spark_fm.spark.schema import check_features, check_outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PAIRS = 1000
BYTES_PER_NAME = 40


class Explaining(FittedModel):
    """The methods of a model that say why it scores as it does."""

    def explain(
        self,
        dataset: DataFrame,
        *,
        numPairs: int = 10,
        numLinear: int | None = None,
        explanationCol: str = "explanation",
    ) -> DataFrame:
        """Take the margin of each row apart into bias, linear and pair contributions.

        Parameters
        ----------
        dataset : DataFrame
            With a features column; its ml_attr metadata, if any, name the features.
        numPairs : int
            Strongest pairs to list a row (0 to 1000).
        numLinear : int, optional
            Strongest linear parts to list a row (>= 0); None lists all.
        explanationCol : str
            Name of the column to add.

        Returns
        -------
        DataFrame
            All columns, and a struct of ``margin``, ``bias``, ``linear`` (array of feature,
            name, value, contribution ``w_j x_j``), ``other_linear``, ``pairs`` (array of
            feature_a, name_a, feature_b, name_b, contribution ``<v_a, v_b> x_a x_b``) and
            ``other_pairs``. Arrays are sorted by absolute contribution, equal ones by
            feature. ``margin`` is bias plus all listed and other parts: the log-odds of label
            1, or the regressor's value, taken in float64.

        Raises
        ------
        InvalidParamError, InvalidColumnError
            At once; a row that cannot be scored is treated as ``transform`` does.

        Notes
        -----
        O(nnz^2 k) a row, as every pair is looked at, in compiled code on Spark's workers: about
        1 ms for 784 non-zeros and k = 16. See docs/explaining.md.
        """
        is_legal = isinstance(numPairs, Integral) and 0 <= numPairs <= MOST_PAIRS
        require(is_legal, "numPairs", numPairs, f"a whole number from 0 to {MOST_PAIRS}")
        is_legal = numLinear is None or (isinstance(numLinear, Integral) and numLinear >= 0)
        require(is_legal, "numLinear", numLinear, "None for all, or a whole number from 0")
        reader = self._reader(dataset)
        check_outputs(dataset.schema, {"explanationCol": explanationCol})
        session = dataset.sparkSession
        named = feature_names(dataset.schema, reader.features_col)
        names = lasting_handle(session, NameTable.of(named), n_bytes=BYTES_PER_NAME * len(named))
        task = ExplainTask(__version__, self._handle(session), names, reader, numPairs, numLinear)
        made = f"spark_fm_{uuid4().hex}"
        # PySpark 4.0 gives a struct of nulls for a null struct.
        is_explained = F.col(made)["margin"].isNotNull()
        column = struct_column(task, dataset.schema[reader.features_col].dataType, EXPLANATION)
        result = row_based(dataset).select("*", column.alias(made))
        if reader.handle_invalid == "skip":
            result = result.where(is_explained)
        explanation = F.when(is_explained, F.col(made)).alias(explanationCol)
        return result.select("*", explanation).drop(made)

    def feature_strengths(self, dataset: DataFrame) -> pd.DataFrame:
        """Measure how strongly each feature acts on the margins of a DataFrame's rows.

        Parameters
        ----------
        dataset : DataFrame
            With a features column; its ml_attr metadata, if any, name the features.

        Returns
        -------
        pandas.DataFrame
            One row for each of the model's features that is somewhere not zero, strongest
            first: ``feature``, ``name`` (None when unknown), ``n_rows`` in which it is not
            zero, and means over all rows of absolute contributions: ``linear`` of
            ``w_j x_j``, ``pairs`` of the sum of all its pairs, ``total`` of both together,
            which is by how much the margin would move if the feature were 0.

        Notes
        -----
        One Spark job, O(nnz k) a row. The driver gets one row a feature.
        """
        return feature_strengths(self, dataset)

    def group_strengths(self, dataset: DataFrame, groups: Groups | None = None) -> pd.DataFrame:
        """Measure how strongly groups of features act, alone and in pairs.

        Parameters
        ----------
        dataset : DataFrame
            With a features column.
        groups : mapping of str to iterable of int, optional
            Feature ids of each group, such as ``{"user": range(0, 943), ...}``; no id twice,
            at most 1000 groups. Ids in no group are left out. None groups features by the
            column that their ml_attr names come from.

        Returns
        -------
        pandas.DataFrame
            One row a group, with means over rows of absolute contributions: ``linear`` of the
            sum of the group's linear parts, and a column for each group, symmetric, of the
            sum of the pairs between both, or within the group.

        Raises
        ------
        InvalidParamError
            For a feature outside the model's range or in two groups.

        Notes
        -----
        One Spark job, O(nnz k + t^2 k) for a row with non-zeros in t groups.
        """
        return group_strengths(self, dataset, groups)

    def plot_strengths(
        self,
        dataset: DataFrame,
        groups: Groups | None = None,
        *,
        top: int = 15,
        path: str | None = None,
    ) -> Figure:
        """Draw the strongest features, and the strengths of groups when they are given.

        Parameters
        ----------
        dataset : DataFrame
        groups : mapping of str to iterable of int, optional
            As for ``group_strengths``; without it only features are drawn.
        top : int
            Features to show (>= 1).
        path : str, optional
            Also save the picture there; the suffix gives the format.

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
        """Return the parameters with one row a feature.

        Parameters
        ----------
        dataset : DataFrame, optional
            Its features column's ml_attr metadata name the features. The model keeps no
            names.

        Returns
        -------
        pandas.DataFrame
            ``feature``, ``name`` when a DataFrame is given (None where it has no name),
            ``linear``, ``factor_0`` to ``factor_{k-1}``. Ids that training never saw and the
            model does not keep are not there.
        """
        weights = self.weights
        ids = weights.features
        if ids is None:
            ids = np.arange(weights.feature_dim, dtype=np.int32)
        columns: dict[str, object] = {"feature": ids}
        if dataset is not None:
            name = self.getFeaturesCol()
            check_features(dataset.schema, name)
            columns["name"] = names_of(ids, feature_names(dataset.schema, name))
        columns["linear"] = weights.linear
        factors = pd.DataFrame(weights.factors, columns=[f"factor_{f}" for f in range(weights.k)])
        return pd.concat([pd.DataFrame(columns), factors], axis=1)
