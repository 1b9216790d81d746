"""From files to a model, as a user waits for it: ``python -m benchmarks.files``.

Rows of Criteo's shape (39 non-zeros, 1 M features) lie in 8 files of a format. ``fit`` trains three
epochs of them, k = 8, without validation rows and with rates that are set: first in a new session,
then again in the same one. The floor is one process without Spark: pyarrow reads the Parquet files,
``PackTask`` packs their rows, the kernel trains. Each is measured in seconds of the processors, of
driver, JVM and Python workers together (Linux), beside wall time; on a machine that others use only
the former say much. Also printed: what the phases of a fit took, by its summary.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.criteo_shape import CriteoShape
from benchmarks.kernel import write_libsvm, xlearn
from benchmarks.local import local_session
from benchmarks.timing import compared, header, row
from spark_fm import FactorizationMachine
from spark_fm.formats.parquet import ParquetSink
from spark_fm.formats.recordio.encode import encode_csr
from spark_fm.formats.recordio.reader import Rows as FileRows
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import Scaling
from spark_fm.learner.state import initial_state
from spark_fm.training.dataset import pack_task
from spark_fm.training.packing import read_blocks

N_FILES = 8
FORMATS = ("parquet", "recordio", "libsvm")
READERS = {"parquet": "parquet", "recordio": "recordio-protobuf", "libsvm": "libsvm"}
BATCH_ROWS = 10_000


def processor_seconds() -> float:
    """Return what this process and all below it have computed, those that have ended too."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    total = 0
    for number in ticks:
        above = number
        while above in parents and above != os.getpid():
            above = parents[above]
        total += ticks[number] if above == os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")


def measured(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return processor seconds, wall seconds, and what the work returns."""
    before, started = processor_seconds(), time.perf_counter()
    result = work()
    wall = time.perf_counter() - started
    return processor_seconds() - before, wall, result


def write_files(folder: Path, n_rows: int, formats: list[str]) -> None:
    """Write the rows in each of the formats; what is there stays."""
    shape, n_file_rows = CriteoShape(), n_rows // N_FILES
    for name in formats:
        target = folder / name
        if target.exists():
            continue
        target.mkdir(parents=True)
        for number in range(N_FILES):
            rows, _ = shape.rows(number, n_file_rows)
            path = target / f"part-{number}.{name}"
            if name == "libsvm":
                write_libsvm(rows, path)
                continue
            indptr, values = rows.X.indptr.astype(np.int64), rows.X.data
            if name == "recordio":
                path.write_bytes(
                    encode_csr(
                        indptr, rows.X.indices, values, shape.n_features, rows.y.astype(np.float32)
                    )
                )
                continue
            sizes, is_dense = np.full(n_file_rows, shape.n_features), np.zeros(n_file_rows, bool)
            with path.open("wb") as file:
                sink = ParquetSink(file, label_col="label", features_col="features")
                sink.write(
                    FileRows(
                        indptr, rows.X.indices, values.astype(np.float64), rows.y, sizes, is_dense
                    )
                )
                sink.close()


def machine(args: argparse.Namespace) -> FactorizationMachine:
    """Return the estimator of all fits."""
    rates = dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.02)
    return FactorizationMachine(
        numFactors=args.factors, epochs=args.epochs, validationFraction=0.0, patience=0, seed=1,
        featureDim=CriteoShape().n_features, **rates,
    )  # fmt: skip


def floor(args: argparse.Namespace) -> dict[str, Any]:
    """Train in this process alone; return the seconds of the processors by phase."""
    config, n_features = machine(args)._train_config(), CriteoShape().n_features
    spec, task = config.spec, pack_task(config)
    clock = {"read": 0.0, "pack": 0.0, "train": 0.0}

    def timed(name: str, since: float) -> float:
        now = time.process_time()
        clock[name] += now - since
        return now

    blocks: list[CsrBatch] = []
    for path in sorted((args.folder / "parquet").iterdir()):
        at = time.process_time()
        batches: list[pa.RecordBatch] = list(pq.ParquetFile(path).iter_batches(BATCH_ROWS))
        at = timed("read", at)
        packed = list(task(iter(batches)))
        blocks += [rows for _, _, _, rows in read_blocks(packed)]
        timed("pack", at)
    at = time.process_time()
    train = Scaling().apply(CsrBatch.concat(blocks))
    counts = np.bincount(train.indices, minlength=n_features)
    state = initial_state(spec, counts, label_mean=float(train.labels.mean()))
    for epoch in range(spec.epochs):
        order = RowOrder(epoch).order(spec, train.n_rows)
        train_inplace(state, train, order, spec=spec)
    timed("train", at)
    return clock


def fits(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit again and again in one session of this process; return the figures of each fit."""
    spark = local_session(f"local[{args.cores}]")
    spark.range(1).count()  # the session's own start is not counted
    frame = spark.read.format(READERS[args.only]).load(str(args.folder / args.only))
    found = []
    for _ in range(1 + args.repeat):
        cpu, wall, model = measured(lambda: machine(args).fit(frame))
        facts, history = model.summary.facts, model.summary.history
        phases = {name: value for name, value in facts.items() if name.endswith("Seconds")}
        phases |= {name: float(history[name].sum()) for name in history if name.endswith("Seconds")}
        found.append({"cpu": cpu, "wall": wall, "workers": facts["numWorkers"], "phases": phases})
    spark.stop()
    return found


def in_a_process(args: argparse.Namespace, what: str) -> Any:
    """Return what a new process of this program measures."""
    words = [
        sys.executable, "-W", "ignore", "-m", "benchmarks.files", "--only", what, "--folder",
        str(args.folder), "--factors", str(args.factors), "--epochs", str(args.epochs), "--repeat",
        str(args.repeat), "--cores", str(args.cores),
    ]  # fmt: skip
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> None:
    """Print the table."""
    header("from", "fit", "processor s", "wall s", "partitions", "phases, wall s")
    in_a_process(args, "floor")  # compiles
    floors = [in_a_process(args, "floor") for _ in range(args.repeat)]
    floor_cpu = float(np.median([each["cpu"] for each in floors]))
    for each in floors:
        row("Parquet", "the floor", *_cells(each))
    if args.xlearn:
        train = args.folder / "train.libsvm"
        write_libsvm(CriteoShape().rows(0, args.rows)[0], train)
        train.with_name(f"{train.name}.bin").unlink(missing_ok=True)  # what it parsed before
        cpu, wall, _ = measured(lambda: xlearn(args.xlearn, train, args.factors, args.epochs))
        row("libsvm", "xLearn", *_cells({"cpu": cpu, "wall": wall, "phases": {}}))
    warm: dict[str, float] = {}
    for name in args.formats:
        first, *later = in_a_process(args, name)
        warm[name] = float(np.median([each["cpu"] for each in later]))
        row(name, "first of a session", *_cells(first))
        for each in later:
            row(name, "later", *_cells(each))
        what = f"files to a model, {name}, the first fit of a session against a later one"
        print(what, compared(what, [first["cpu"] / warm[name]], "<= 2", moonshot="<= 1.4"))
    if "parquet" in warm:
        what = "files to a model, Parquet, against one process without Spark"
        print(what, compared(what, [warm["parquet"] / floor_cpu], "<= 1.5", moonshot="<= 1.15"))
    if {"parquet", "recordio"} <= set(warm):
        what = "files to a model, recordIO against Parquet"
        ratio = warm["recordio"] / warm["parquet"]
        print(what, compared(what, [ratio], "<= 1.2", moonshot="<= 1.0"))
    if args.xlearn and "parquet" in warm:
        what = "files to a model, Parquet, against xLearn from text"
        print(what, compared(what, [warm["parquet"] / cpu], "<= 0.8", moonshot="<= 0.5"))


def _cells(found: dict[str, Any]) -> list[str]:
    phases = ", ".join(f"{n.removesuffix('Seconds')} {s:.2f}" for n, s in found["phases"].items())
    return [f"{found['cpu']:.2f}", f"{found['wall']:.2f}", str(found.get("workers", 1)), phases]


def main() -> None:
    """Print the table, or the figures of one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--factors", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--folder", type=Path, help="where the files are, or are written to")
    parser.add_argument("--xlearn", help="path of the program xlearn_train")
    parser.add_argument("--only", choices=("floor", *FORMATS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "floor":
        cpu, wall, clock = measured(lambda: floor(args))
        print(json.dumps({"cpu": cpu, "wall": wall, "phases": clock}))
    elif args.only:
        print(json.dumps(fits(args)))
    elif args.folder:
        write_files(args.folder, args.rows, args.formats)
        compare(args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = Path(folder)
            write_files(args.folder, args.rows, args.formats)
            compare(args)


if __name__ == "__main__":
    main()
