"""A grid of 8 through fitMultiple against 8 fits: ``python -m benchmarks.grid``.

Both in one session on the same cached rows, in turn and repeated, after a warm-up; the
figures are the median of the repetitions and their spread. Bars: 0.5 of the time of 8
fits on ml100k-binary, 0.8 on rows of Criteo's shape.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from pyspark.sql import DataFrame

from benchmarks.criteo_shape import CriteoShape
from benchmarks.datasets import ml100k_binary, to_frame
from benchmarks.local import local_session
from benchmarks.timing import compared
from spark_fm import FactorizationMachine

RATES = (0.05, 0.1, 0.2, 0.3)
DECAYS = (0.006, 0.024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of Criteo's shape")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=["ml100k-binary", "criteo"])
    args = parser.parse_args()
    spark = local_session("local[2]")
    if args.only != "criteo":
        split = ml100k_binary()
        fm = FactorizationMachine(numFactors=16, seed=1)
        frame = to_frame(spark, split.train, 2).cache()
        measure("ml100k-binary", fm, frame, args.repeat, ("<= 0.5", "<= 0.3"))
    if args.only != "ml100k-binary":
        fm = FactorizationMachine(numFactors=16, seed=1, epochs=3, refit="never")
        rows, _ = CriteoShape().rows(0, args.rows)
        frame = to_frame(spark, rows, 8).cache()
        name = f"criteo shape, {args.rows:,} rows"
        measure(name, fm, frame, args.repeat, ("<= 0.8", "<= 0.6"))
    spark.stop()


def measure(
    name: str, fm: FactorizationMachine, frame: DataFrame, repeat: int, bars: tuple[str, str]
) -> None:
    frame.count()
    maps: list[dict[Any, Any]] = [
        {fm.factorsLr: rate, fm.linearLr: rate, fm.factorsWd: decay}
        for rate in RATES
        for decay in DECAYS
    ]
    fm.fit(frame)  # compiles, and starts the workers
    apart, together = [], []
    for _ in range(repeat):
        clock = time.perf_counter()
        alone = [fm.fit(frame, chosen) for chosen in maps]
        apart.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        grid = fm.fit(frame, maps)
        together.append(time.perf_counter() - clock)
        for one, other in zip(alone, grid, strict=True):
            if not np.array_equal(one.weights.table, other.weights.table):
                raise SystemExit("the models differ")
    ratios = np.array(together) / np.array(apart)
    print(
        f"{name}: 8 fits {np.median(apart):.1f} s, a grid of 8 {np.median(together):.1f} s: "
        + compared(
            f"a grid of 8 against 8 fits, {name}", ratios.tolist(), bars[0], moonshot=bars[1]
        )
        + "; same models",
        flush=True,
    )


if __name__ == "__main__":
    main()
