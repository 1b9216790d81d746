"""Recommend to users of MovieLens 100K the best movies that they have not rated.

Needs the folder ``ml-100k`` (GroupLens) under the folder that ``SPARK_FM_DATA`` names. A
user is one feature; a movie is one feature and its genres.
"""

from __future__ import annotations

import argparse
import gzip
import sys

import numpy as np
import scipy.sparse as sp
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from examples.real_sets import Rows, data_folder, ml100k_regression, to_frame
from examples.session import local_session
from spark_fm import FactorizationMachine

USERS, MOVIES, GENRES = 943, 1682, 19


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--user", type=int, default=1, help="user to show, 1 to 943")
    parser.add_argument("--count", type=int, default=10, help="movies per user")
    arguments = parser.parse_args()
    try:
        split, titles, genres = load()
    except FileNotFoundError as err:
        sys.exit(f"This example needs MovieLens 100K: {err}.")

    spark = local_session("local[*]")
    rated = split.X.indices.reshape(-1, 2) - [0, USERS]  # user, movie from 0
    train = to_frame(spark, Rows(sp.hstack([split.X, genres[rated[:, 1]]], "csr"), split.y))
    machine = FactorizationMachine(
        predictorType="regressor", numFactors=8, featureDim=USERS + MOVIES + GENRES, seed=7
    )
    model = machine.fit(train)
    print(model.summary)

    users = with_ids(
        spark, "user", sp.hstack([sp.identity(USERS), sp.csr_matrix((USERS, MOVIES + GENRES))])
    )
    movies = with_ids(
        spark, "movie", sp.hstack([sp.csr_matrix((MOVIES, USERS)), sp.identity(MOVIES), genres])
    )
    seen = spark.createDataFrame((rated + 1).tolist(), "user int, movie int")
    best = model.recommend(
        users, movies, arguments.count, contextCol="user", candidateCol="movie", exclude=seen
    ).cache()
    print(f"\n{best.count():,} recommendations for {USERS} users")

    title = spark.createDataFrame(list(enumerate(titles, 1)), "movie int, title string")
    stars = spark.createDataFrame(
        np.column_stack([rated + 1, split.y.astype(int)]).tolist(),
        "user int, movie int, rating int",
    )
    mine = F.col("user") == arguments.user
    print(f"\nUser {arguments.user} liked")
    liked = stars.where(mine & (F.col("rating") == 5)).join(title, "movie").orderBy("movie")
    for row in liked.limit(8).collect():
        print(f"       {row['title']}")
    print("and may like")
    for row in best.where(mine).join(title, "movie").orderBy("rank").collect():
        print(f"  {row['rank']:>2}  {row['title']:<50} {row['score']:.2f} stars")
    spark.stop()


def load() -> tuple[Rows, list[str], sp.csr_matrix]:
    """Return ratings, titles, and the genres of each movie as a row of flags."""
    ratings = ml100k_regression().train
    with gzip.open(data_folder() / "ml-100k" / "u.item.gz", "rt", encoding="latin-1") as lines:
        fields = [line.rstrip("\n").split("|") for line in lines]
    flags = np.array([row[-GENRES:] for row in fields], np.float64)
    return ratings, [row[1] for row in fields], sp.csr_matrix(flags)


def with_ids(spark: SparkSession, name: str, matrix: sp.spmatrix) -> DataFrame:
    """Return the rows of a matrix as vectors, with ids from 1."""
    rows = Rows(matrix.tocsr(), np.arange(1.0, matrix.shape[0] + 1))
    return to_frame(spark, rows).select(F.col("label").cast("int").alias(name), "features")


if __name__ == "__main__":
    main()
