"""Notebooks show quality first, against the constant, then warnings and what to do next."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame

from spark_fm import FactorizationMachineModel, FMEvaluation, FMTrainingSummary
from spark_fm.ml.html import against_constant, card
from tests.ml.builders import column


class _Tags(HTMLParser):
    """Checks that tags are closed in their order, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def words(html: str) -> str:
    """Return the text of well-formed HTML."""
    parser = _Tags()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return " ".join(parser.text)


def test_a_summary_shows_its_loss_before_anything_else(
    classifier: FactorizationMachineModel,
) -> None:
    summary = classifier.summary

    text = words(summary._repr_html_())

    loss = summary.history["validationLoss"][summary.bestEpoch]
    assert f"log loss {loss:.4g}" in text
    assert f"a constant, {summary.baseline:.4g}" in text
    assert text.index("log loss") < text.index("rows") or "On held-out rows" in text
    assert "summary.plot()" in text


def test_a_regressor_s_is_a_squared_error() -> None:
    rows = [{"validationLoss": 0.5, "validation_rmse": 0.5**0.5}]

    summary = FMTrainingSummary(rows, {"bestEpoch": 0, "constantLoss": 1.0})

    assert summary.quality == (
        "On held-out rows squared error 0.5, 50% below that of a constant, 1."
    )


def test_a_model_kept_without_factors_is_judged_without_them() -> None:
    facts = {"bestEpoch": 0, "constantLoss": 1.0, "linearLoss": 0.4, "linearKept": True}

    assert "log loss 0.4" in FMTrainingSummary([{"validationLoss": 0.5}], facts).quality


def test_without_held_out_rows_it_says_where_quality_is_found(
    classifier: FactorizationMachineModel,
) -> None:
    rows = [{"trainLoss": row["trainLoss"]} for row in classifier.summary.rows]

    text = words(replace(classifier.summary, rows=rows)._repr_html_())

    assert "No rows were held out" in text
    assert "model.evaluate(df)" in text


def test_warnings_are_shown_and_escaped(classifier: FactorizationMachineModel) -> None:
    facts = classifier.summary.facts | {"warnings": ["rows <b> & others were skipped"]}

    text = words(replace(classifier.summary, facts=facts)._repr_html_())

    assert "rows <b> & others were skipped" in text


def test_a_model_shows_what_it_is_and_what_to_do_with_it(
    classifier: FactorizationMachineModel,
) -> None:
    text = words(classifier._repr_html_())

    assert "binary classifier" in text
    assert classifier.summary.quality in text
    for call in ("transform", "evaluate", "explain", "save"):
        assert f"model.{call}(" in text
    assert "no parameters" in words(FactorizationMachineModel()._repr_html_())
    assert "imported" in words(FactorizationMachineModel(classifier.weights)._repr_html_())


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_an_evaluation_s_constant_is_that_of_its_rows(
    kind: str, request: pytest.FixtureRequest
) -> None:
    frame: DataFrame = request.getfixturevalue("train" if kind == "classifier" else "ratings")
    labels = column(frame, "label").astype(float)

    evaluation = request.getfixturevalue(kind).evaluate(frame)

    if kind == "classifier":
        rates = np.bincount(labels.astype(int)) / len(labels)
        expected = -(rates * np.log(rates)).sum()
    else:
        expected = labels.std()
    assert evaluation.baseline == pytest.approx(expected)
    text = words(evaluation._repr_html_())
    assert f"a constant, {evaluation.baseline:.4g}" in text
    assert "evaluation.plot()" in text


def test_an_evaluation_no_better_than_a_constant_says_so() -> None:
    confusion = pd.DataFrame([[50.0, 0.0], [50.0, 0.0]])
    empty = pd.DataFrame()

    bad = FMEvaluation({"rows": 100, "logloss": 0.8}, empty, confusion, empty, empty)

    assert "no better than a constant on these rows" in words(bad._repr_html_())


def test_losses_are_compared_in_words() -> None:
    assert against_constant("Loss", 0.25, 0.5) == "Loss 0.25, 50% below that of a constant, 0.5."
    assert against_constant("Loss", 0.5, 0.5) == "Loss 0.5: no better than a constant, 0.5."
    assert against_constant("Loss", 0.5, None) == "Loss 0.5."


def test_large_numbers_are_readable() -> None:
    assert "12,345" in words(card("t", "q", {"rows": 12_345, "area": 0.123456}, advice={}))
