"""Small data, where Spark's own cost decides: ``python -m benchmarks.small``.

After a warm-up, in one session: 100 epochs of ml100k-binary with k = 64, all of them run
(bar 10 s; SageMaker's own loop took 86 s); and ``fit`` of 1,000 rows for 10 epochs (bar 1 s).
"""

from __future__ import annotations

import argparse

from benchmarks.datasets import Rows, ml100k_binary, to_frame
from benchmarks.local import local_session
from benchmarks.timing import compared, header, row, seconds_of
from spark_fm import FactorizationMachine


def whole_fits(repeat: int) -> None:
    """Print the times of the two small fits."""
    spark = local_session("local[2]")
    split = ml100k_binary()
    frame = to_frame(spark, split.train, 2).cache()
    few = to_frame(spark, Rows(split.train.X[:1000], split.train.y[:1000]), 2).cache()
    frame.count(), few.count()
    header("whole fit()", "seconds")
    settings = {"validationFraction": 0.0, "patience": 0, "seed": 1}
    machine = FactorizationMachine(numFactors=64, epochs=100, **settings)
    machine.copy({machine.epochs: 2}).fit(frame)
    what = "ml100k-binary, k=64, 100 epochs"
    times = [seconds_of(lambda: machine.fit(frame)) for _ in range(repeat)]
    row(what, compared(f"seconds of {what}", times, "<= 10", moonshot="<= 3"))
    machine = FactorizationMachine(numFactors=8, epochs=10, **settings)
    machine.fit(few)
    what = "1,000 rows, k=8, 10 epochs"
    times = [seconds_of(lambda: machine.fit(few)) for _ in range(2 * repeat)]
    row(what, compared(f"seconds of {what}", times, "<= 1", moonshot="<= 0.3"))
    spark.stop()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    whole_fits(parser.parse_args().repeat)


if __name__ == "__main__":
    main()
