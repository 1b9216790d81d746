"""Speed of the training kernel on one core, and of xLearn where its program is given.

``python -m benchmarks.kernel --xlearn path/to/xlearn_train`` prints nanoseconds a
non-zero and rows a second on the Criteo-shaped set: the median of repeated passes and
their spread, one pass of each optimizer and k after the other so that all meet the same
machine. xLearn runs with AdaGrad, one thread, no validation, no instance normalisation;
its time an epoch is what it prints itself. Test log losses are after equal epochs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import expit

from benchmarks.criteo_shape import CriteoShape
from benchmarks.datasets import Rows
from benchmarks.timing import compared
from spark_fm import FactorizationMachine
from spark_fm.formats.recordio.reader import Rows as FileRows
from spark_fm.formats.text import text_lines
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import train_inplace, training_kernel
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import TrainState, initial_state
from spark_fm.learner.training import Parameters, evaluate

# Steps of linear weights and factors; AdaGrad's of xLearn, too. The defaults (0.2 of AdaGrad in
# both) learn these rows by heart, or explode with many factors.
RATES = {"adagrad": 0.02, "sgd": 0.005, "adam": 0.0003}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Runner:
    """One setting, trained a pass at a time."""

    optimizer: str
    k: int
    spec: Hyperparameters
    state: TrainState
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, optimizer: str, k: int, train: CsrBatch, n_features: int, rate: float | None = None
    ) -> Runner:
        """Return a fresh state and a compiled kernel; steps are of RATES where none is given."""
        rate = RATES[optimizer] if rate is None else rate
        machine = FactorizationMachine(
            predictorType="binary_classifier", numFactors=k, optimizer=optimizer, seed=1
        )
        machine.setLinearLr(rate).setFactorsLr(rate)
        spec = machine._spec()
        counts = np.bincount(train.indices, minlength=n_features)
        training_kernel(k, spec.loss, spec.optimizer, False)
        return cls(optimizer, k, spec, initial_state(spec, counts, label_mean=train.labels.mean()))

    def run(self, train: CsrBatch, epoch: int) -> None:
        """Train one pass and note its time."""
        order = np.random.default_rng(epoch).permutation(train.n_rows)
        started = time.perf_counter()
        train_inplace(self.state, train, order, spec=self.spec)
        self.seconds.append(time.perf_counter() - started)

    def test_loss(self, test: CsrBatch) -> float:
        """Return the log loss of the state as it is."""
        return evaluate(Parameters.of(self.state), test, self.spec).mean_loss()


def to_batch(rows: Rows) -> CsrBatch:
    """Return the rows as the kernels take them."""
    return CsrBatch.from_arrays(
        rows.X.indptr.astype(np.int64), rows.X.indices, rows.X.data,
        labels=rows.y.astype(np.float32),  # of another type kernels would compile anew
    )  # fmt: skip


def write_libsvm(rows: Rows, path: Path) -> None:
    """Write the rows for xLearn."""
    with path.open("wb") as out:
        for start in range(0, len(rows.y), 50_000):
            X, y = rows.X[start : start + 50_000], rows.y[start : start + 50_000]
            n = len(y)
            part = FileRows(
                X.indptr.astype(np.int64), X.indices, X.data.astype(np.float64), y,
                np.full(n, -1), np.zeros(n, np.bool_),
            )  # fmt: skip
            out.write(text_lines(part, "libsvm"))


def xlearn(program: str, train: Path, k: int, epochs: int) -> tuple[list[float], Path]:
    """Train by xLearn; return seconds of each epoch and the model as text."""
    model = train.with_name(f"xlearn-{k}.txt")
    words = [program, str(train), "-s", "1", "-p", "adagrad", "-k", str(k), "-e", str(epochs),
             "-r", str(RATES["adagrad"]), "-nthread", "1", "--no-norm", "--dis-es", "-m", "none",
             "-t", str(model),
             "-l", str(train.with_name("log"))]  # fmt: skip
    environment = {"USER": "nobody", **os.environ}  # xLearn stops without it
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    text = COLOURS.sub("", done.stdout)
    epoch_lines = re.findall(r"\d+%.*\s(\d+\.\d+)\s*$", text, re.MULTILINE)
    return [float(seconds) for seconds in epoch_lines], model


def xlearn_test_loss(model: Path, test: Rows, k: int) -> float:
    """Return the test log loss of xLearn's text model."""
    linear = np.zeros(test.X.shape[1] + 2)
    factors = np.zeros((test.X.shape[1] + 2, k))
    bias = 0.0
    with model.open() as lines:
        for line in lines:
            name, numbers = line.split(":")
            if name == "bias":
                bias = float(numbers)
            elif name.startswith("i_"):
                linear[int(name[2:])] = float(numbers)
            else:
                factors[int(name[2:])] = np.fromstring(numbers, sep=" ")
    X = test.X
    linear, factors = linear[1 : X.shape[1] + 1], factors[1 : X.shape[1] + 1]
    score = bias + X @ linear + 0.5 * ((X @ factors) ** 2 - X.multiply(X) @ factors**2).sum(1)
    chance = np.clip(expit(score), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.log(np.where(test.y == 1, chance, 1 - chance))))


BARS = {8: ">= 2", 16: ">= 2", 64: ">= 1.6"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--factors", default="4,8,16,32,64,128")
    parser.add_argument("--optimizers", default="adagrad,sgd,adam")
    parser.add_argument("--xlearn", help="path of the program xlearn_train")
    args = parser.parse_args()
    shape = CriteoShape()
    train_rows, _ = shape.rows(0, args.rows)
    test_rows, best = shape.rows(10**6, 100_000)
    train, test = to_batch(train_rows), to_batch(test_rows)
    print(f"{args.rows:,} rows x 39, 1 M features; best reachable test log loss {best:.4f}\n")
    print("| optimizer | k | ns a non-zero | spread | rows/s | test log loss | "
          "xLearn ns | its test log loss | ratio |")  # fmt: skip
    print("| --- " * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.libsvm"
        if args.xlearn:
            write_libsvm(train_rows, file)
        for k in map(int, args.factors.split(",")):
            runners = [Runner.of(name, k, train, shape.n_features)
                       for name in args.optimizers.split(",")]  # fmt: skip
            peer: list[float] = []
            model = None
            if args.xlearn:
                peer, model = xlearn(args.xlearn, file, k, args.epochs)
            for epoch in range(args.epochs):
                for runner in runners:
                    runner.run(train, epoch)
            for runner in runners:
                times = np.array(runner.seconds) / train.nnz * 1e9
                cells = [runner.optimizer, str(k), f"{np.median(times):.1f}",
                         f"{times.min():.1f} to {times.max():.1f}",
                         f"{1e9 / np.median(times) / 39:,.0f}",
                         f"{runner.test_loss(test):.4f}"]  # fmt: skip
                if peer and model is not None and runner.optimizer == "adagrad":
                    theirs = float(np.median(peer)) / train.nnz * 1e9
                    cells += [f"{theirs:.1f}", f"{xlearn_test_loss(model, test_rows, k):.4f}",
                              f"{theirs / np.median(times):.2f}"]  # fmt: skip
                    if k in BARS:
                        ratios = (theirs / times).tolist()
                        compared(f"kernel against xLearn, k={k}", ratios, BARS[k], moonshot=">= 4")
                else:
                    cells += ["", "", ""]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
