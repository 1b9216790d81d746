"""``spark-fm convert``: files of one format to another; no Spark or Java."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from spark_fm.cli.errors import UsageError, input_format
from spark_fm.cli.outputs import check_output_file
from spark_fm.formats.convert import FORMATS, Conversion, convert
from spark_fm.formats.files import STDIN
from spark_fm.learner.csr import MAX_FEATURE_ID

USAGE = "--input PATH --output FILE [more flags]"
EXAMPLE = """examples:
  spark-fm convert --input a9a.gz --format libsvm --output a9a.pbr
  spark-fm convert --input a9a.pbr --output a9a.npz
  zcat a9a.gz | spark-fm convert --input - --format libsvm --num-features 123 --output a9a.parquet
"""
LOG_INTERVAL_SECONDS = 5.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH",
        help="files, folders or globs, also .gz; a named pipe; - is standard input",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="FILE",
        help="a local file; text and records are compressed if its name ends in .gz",
    )  # fmt: skip
    parser.add_argument(
        "--format", type=input_format, choices=FORMATS, help="format of the input [from its name]"
    )
    parser.add_argument(
        "--output-format", choices=FORMATS, help="format of the output [from its name]"
    )
    parser.add_argument(
        "--num-features", type=int, metavar="N",
        help="length of the rows [from the input; for text the largest index, which takes "
        "reading it twice]",
    )  # fmt: skip
    parser.add_argument("--label-col", default="label", help="column of Parquet files [label]")
    parser.add_argument(
        "--features-col", default="features", help="column of Parquet files [features]"
    )
    parser.add_argument(
        "--missing-label", type=float, metavar="NUMBER", help="label of rows without one"
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing output")


def run(args: argparse.Namespace) -> None:
    if args.num_features is not None and not 1 <= args.num_features <= MAX_FEATURE_ID + 1:
        raise UsageError(
            f"--num-features {args.num_features} is not allowed: expected 1 to "
            f"{MAX_FEATURE_ID + 1:,}."
        )
    if args.output == STDIN:
        raise UsageError("--output - is not possible: the output appears when it is complete.")
    check_output_file(args.output, overwrite=args.overwrite)
    job = Conversion(
        inputs=tuple(args.input),
        output=args.output,
        input_format=args.format,
        output_format=args.output_format,
        num_features=args.num_features,
        label_col=args.label_col,
        features_col=args.features_col,
        missing_label=args.missing_label,
    )
    started = time.monotonic()
    with _Progress() as progress:
        done = convert(job, progress)
    print(
        f"converted {done.n_rows:,} rows, {done.n_entries:,} entries, {done.width:,} features to "
        f"{args.output} in {time.monotonic() - started:.1f} s"
    )


class _Progress:
    """A bar for each pass over the input; lines without tqdm or a terminal."""

    def __init__(self) -> None:
        self._title = ""
        self._bar: Any = None
        self._printed = time.monotonic()

    def __call__(self, title: str, done: int, total: int) -> None:
        """Show how many bytes of a pass are done."""
        if title != self._title:
            self._close()
            self._title, self._bar = title, _make_bar(title, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._printed > LOG_INTERVAL_SECONDS:
            self._printed = time.monotonic()
            percent = f"{done / total:.0%}, " if total else ""
            print(f"{title}: {percent}{done / 1e6:,.0f} MB", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _make_bar(title: str, total: int) -> Any:
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=total or None, desc=title, unit="B", unit_scale=True, dynamic_ncols=True,
        file=sys.stderr,
    )  # fmt: skip
