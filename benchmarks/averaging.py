"""Loss by number of partitions and merge rule, without Spark: ``python -m benchmarks.averaging``.

Cuts a training set into partitions, trains them one after the other with the project's
own kernels, and merges them plainly, by touch count, or with progress correction.
Prints a table and draws the curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.datasets import SPLITS, Split
from benchmarks.quality import WORKER_EPOCHS
from spark_fm import FactorizationMachine
from spark_fm.learner import averaging
from spark_fm.learner.averaging import AveragingRule, Delta, average_deltas
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import RowOrder, round_order
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import TrainState, initial_state
from spark_fm.learner.training import AVERAGED_ETA, SEQUENTIAL_ETA, Parameters, evaluate

RULES = ("corrected", "plain", "count")


def spec_of(split: Split, seed: int, epochs: int) -> Hyperparameters:
    """Return the default hyperparameters for a set."""
    machine = FactorizationMachine(
        predictorType=split.predictor_type, numFactors=split.num_factors, seed=seed, epochs=epochs
    )
    return machine._spec()


def merged_plainly(
    old: np.ndarray, deltas: Sequence[Delta], n_partitions: int, k: int, rule: str
) -> Delta:
    """Return the mean over all partitions, or the mean weighted by touches."""
    change = np.zeros_like(old, dtype=np.float64)
    weight = np.zeros(len(old))
    for delta in deltas:
        share = delta.n_updates if rule == "count" else np.ones(len(delta.ids))
        change[delta.ids] += (delta.columns - old[delta.ids]) * share[:, None]
        weight[delta.ids] += share
    ids = np.flatnonzero(weight).astype(np.int32)
    total = weight[ids] if rule == "count" else np.full(len(ids), n_partitions)
    merged = old[ids] + change[ids] / total[:, None]
    return Delta(ids, weight[ids].astype(np.float32), merged.astype(np.float32))


def best_loss(split: Split, n_partitions: int, n_rounds: int, rule: str, seed: int) -> float:
    """Return the best test loss of any epoch: log loss, or RMSE."""
    spec = spec_of(split, seed, WORKER_EPOCHS[split.name])
    regression = spec.loss == "squared"
    scale = float(split.train.y.std()) if regression else 1.0
    train = CsrBatch.from_matrix(split.train.X, labels=split.train.y / scale)
    test = CsrBatch.from_matrix(split.test.X, labels=split.test.y / scale)
    counts = np.bincount(train.indices, minlength=split.train.X.shape[1])
    state = initial_state(spec, counts, label_mean=float(train.labels.mean()))
    layout, k = state.layout, spec.k
    order = np.random.default_rng(seed).permutation(train.n_rows)
    parts = [
        [train.take(rows) for rows in np.array_split(mine, n_rounds)]
        for mine in np.array_split(order, n_partitions)
    ]
    average: Parameters | None = None
    eta = SEQUENTIAL_ETA if n_partitions == 1 else AVERAGED_ETA
    residual, losses = float(train.labels.var()), []
    for epoch in range(spec.epochs):
        for round_index in map(int, round_order(spec, n_rounds, epoch)):
            old = state.synced_columns()
            deltas, biases, loss_sum, weight_sum = [], [], 0.0, 0.0
            for partition in range(n_partitions):
                mine = TrainState.from_synced(layout, old, state.bias)
                rows = parts[partition][round_index]
                order = RowOrder(epoch, round_index, partition).order(spec, rows.n_rows)
                stats = train_inplace(mine, rows, order, spec=spec)
                loss_sum += stats.loss_sum
                weight_sum += stats.weight_sum
                ids = np.flatnonzero(mine.rows[:, layout.n_updates]).astype(np.int32)
                columns = mine.rows[ids, : layout.n_synced]
                deltas.append(Delta(ids, mine.rows[ids, layout.n_updates], columns))
                biases.append(mine.bias)
            if rule == "corrected":
                merge = AveragingRule(
                    layout, n_partitions, spec.linear.lr, spec.factors.lr,
                    row_length=rows.nnz / rows.n_rows, residual=residual if regression else 1.0,
                )  # fmt: skip
                merged = average_deltas(old, 0, deltas, merge)
            else:
                known = old[:, : layout.n_synced]
                merged = merged_plainly(known, deltas, n_partitions, k, rule)
            state.rows[merged.ids, : layout.n_synced] = merged.columns
            state.bias[:] = np.mean(biases, axis=0)
            residual = loss_sum / weight_sum
        if average is None:
            average = Parameters.of(state)
        else:
            average.move_towards_inplace(state, epoch, eta)
        loss = evaluate(average, test, spec, scale).mean_loss()
        losses.append(loss**0.5 if regression else loss)
    return min(losses)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; draw it where ``--plot`` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS)[:4])
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    print(f"progress gain {averaging.PROGRESS_GAIN:g}, floor {averaging.PROGRESS_FLOOR:g}")
    print("| set | rule | rounds | " + " | ".join(f"P={p}" for p in args.partitions) + " |")
    print("| --- | --- | --- |" + " --- |" * len(args.partitions))
    curves: dict[str, dict[str, list[float]]] = {}
    for name in args.splits:
        split = SPLITS[name]()
        alone = best_loss(split, 1, 1, "corrected", args.seed)
        for rule in args.rules:
            for n_rounds in args.rounds:
                ratios = [
                    best_loss(split, p, n_rounds, rule, args.seed) / alone for p in args.partitions
                ]
                curves.setdefault(name, {})[f"{rule}, {n_rounds}"] = ratios
                cells = " | ".join(f"{ratio:.4f}" for ratio in ratios)
                print(f"| {name} ({alone:.4f}) | {rule} | {n_rounds} | {cells} |", flush=True)
    if args.plot is not None:
        draw(curves, args.partitions, args.plot)


def draw(curves: dict[str, dict[str, list[float]]], partitions: list[int], path: Path) -> None:
    """Draw loss relative to one partition by number of partitions, a panel a set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0],
                                   curves.items(), strict=True):  # fmt: skip
        for label, ratios in lines.items():
            style = "-" if label.startswith("corrected") else ":"
            axes.plot(partitions, ratios, style, marker="o", ms=3, label=label)
        axes.axhspan(0.99, 1.01, color="gray", alpha=0.2)
        axes.set(xscale="log", title=name, xlabel="partitions", ylim=(0.98, 1.15))
        axes.grid(alpha=0.3)
    axes.legend(title="rule, rounds", fontsize="x-small")
    figure.axes[0].set_ylabel("best test loss / one partition's")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
