"""The pages of docs/ that are to be copied line by line run as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyspark.ml.feature import FeatureHasher
from pyspark.sql import SparkSession

from spark_fm.cli.main import main
from spark_fm.recordio import read_records

DOCS = Path(__file__).resolve().parent.parent / "docs"


# Fits of a moment: what the pages say is how the calls go together.
FM = "FactorizationMachine("
QUICK = "epochs=2, biasLr=0.1, linearLr=0.1, factorsLr=0.1, "


def blocks(page: str, section: str = "") -> list[str]:
    """Return the Python code of a page, or of one of its sections."""
    text = (DOCS / page).read_text()
    if section:
        text = re.split(rf"^## {section}\n", text, flags=re.M)[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(folder: Path, page: str, section: str = "", *, params: str = QUICK) -> dict[str, Any]:
    """Run the code of a page, with its files in a folder, and return its names."""
    code = "\n".join(blocks(page, section)).replace(FM, FM + params)
    code = re.sub(r'"([\w-]+\.(?:csv|model|npz|parquet|pbr))"', rf'"{folder}/\1"', code)
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)
    return names


def customers(n_rows: int) -> pd.DataFrame:
    """A table as people have them: text, nulls, numbers, dates, a boolean."""
    draw = np.random.default_rng(3)
    plan = draw.choice(["free", "pro", "team"], n_rows)
    device = draw.choice(["ios", "android", "web"], n_rows)
    margin = 2.0 * ((plan == "pro") & (device == "ios")) - 1.5 * (plan == "free") + 0.2
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 365, n_rows), unit="D")
    return pd.DataFrame(
        {
            "customer_id": np.arange(n_rows),
            "city": draw.choice(["Oslo", "Turin", None], n_rows),
            "plan": plan,
            "device": device,
            "age": np.where(draw.random(n_rows) < 0.1, np.nan, draw.integers(18, 80, n_rows)),
            "signup": days.strftime("%Y-%m-%d"),
            "revenue": draw.gamma(2, 30, n_rows).round(2),
            "churned": draw.random(n_rows) < 1 / (1 + np.exp(-2 * margin)),
        }
    )


def test_a_table_is_trained_on_compared_served_and_asked(
    spark: SparkSession, tmp_path: Path
) -> None:
    customers(600).to_csv(tmp_path / "customers.csv", index=False)

    names = run(tmp_path, "own-table.md")

    assert (
        names["model"].evaluate(names["hasher"].transform(names["test"])).metrics["logloss"] < 0.68
    )
    assert len(names["search"].avgMetrics) == 2
    assert len(names["plans"].stages[-1].models) == 3


def test_a_value_has_the_place_that_featurehasher_gives_it(spark: SparkSession) -> None:
    code = next(code for code in blocks("own-table.md") if "def place" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    cells = {"a": "é", "b": "", "city": "Oslo", "d": "a longer text, 世界", "flag": True, "n": -3.5}

    hasher = FeatureHasher(inputCols=list(cells), outputCol="features", numFeatures=10_007)
    rows = spark.createDataFrame([tuple(cells.values())], list(cells))
    vector = hasher.transform(rows).first()["features"]

    found = dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
    expected = {names["place"](name, value, 10_007): 1.0 for name, value in cells.items()}
    del expected[names["place"]("n", -3.5, 10_007)]
    assert found == {**expected, names["place"]("n", size=10_007): -3.5}
    request = names["request"]["instances"][0]["data"]["features"]
    assert len(request["keys"]) == len(request["values"]) == 6


def test_books_are_recommended_from_ratings_in_a_file(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(5)
    books = pd.DataFrame({"isbn": [f"978-{i:05d}" for i in range(40)]})
    books["title"] = [f"Book {i}" for i in range(40)]
    books["genre"] = draw.choice(["crime", "poetry"], 40)
    stars = pd.DataFrame(
        [(f"reader{r}", isbn) for r in range(30) for isbn in draw.choice(books["isbn"], 12, False)],
        columns=["reader", "isbn"],
    )
    stars["stars"] = draw.integers(1, 6, len(stars))
    books.to_csv(tmp_path / "books.csv", index=False)
    stars.to_csv(tmp_path / "stars.csv", index=False)

    names = run(tmp_path, "recommending.md", "From ratings in a file")

    best = names["best"].toPandas()
    assert (best.groupby("reader").size() == 10).all()
    assert best.merge(stars, on=["reader", "isbn"]).empty
    assert "Book" in capsys.readouterr().out


def test_a_matrix_of_what_was_taken_becomes_pairs_and_recommendations(
    spark: SparkSession, tmp_path: Path
) -> None:
    draw = np.random.default_rng(7)
    taste = (np.arange(60) % 3)[:, None] == np.arange(45) % 3
    taken = sp.csr_matrix(draw.random((60, 45)) < np.where(taste, 0.6, 0.02))
    sp.save_npz(tmp_path / "interactions.npz", taken.astype(np.float32))

    names = run(tmp_path, "coming-from-lightfm.md", params="solver='gibbs', ")

    pairs = names["pairs"].toPandas()
    is_taken = np.asarray(taken[pairs["user"], pairs["item"]]).ravel()
    assert is_taken[pairs["label"] == 1.0].all()
    best = names["best"].toPandas()
    first = best[best["rank"] <= 3]
    assert (first["user"] % 3 == first["item"] % 3).mean() > 0.6  # a sixth by chance
    assert best.merge(names["known"].toPandas(), on=["user", "item"]).empty
    assert 0 <= names["recall"] <= 1


def test_files_of_libfm_and_libffm_become_a_model(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(8)
    labels, ids = draw.integers(0, 2, 200), draw.integers(0, 20, 200)
    lines = [f"{label} {i}:1 {20 + label}:0.5" for label, i in zip(labels, ids, strict=True)]
    (tmp_path / "train.libfm").write_text("\n".join(lines) + "\n")
    fields = [line.replace(" ", " 0:", 1).replace(" 2", " 1:2", 1) for line in lines]
    (tmp_path / "clicks.ffm").write_text("\n".join(fields) + "\n")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "coming-from-libfm.md").read_text()
    for line in re.findall(r"^spark-fm (convert [^#\n]*)", page, re.M):
        assert main(line.split()) == 0

    names = run(tmp_path, "coming-from-libfm.md")

    assert names["train"].count() == 200
    assert names["model"].numFeatures == 22
    assert spark.read.parquet(f"{tmp_path}/clicks.parquet").count() == 200
    assert read_records(tmp_path / "train.pbr")[1].tolist() == [1.0, 0.0]
