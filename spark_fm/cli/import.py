"""``spark-fm import``: a model of another format to a saved model; no Spark or Java."""

from __future__ import annotations

import argparse

from spark_fm.cli.errors import UsageError
from spark_fm.formats.models.archives import MAX_BYTES
from spark_fm.formats.models.libfm import read_libfm
from spark_fm.formats.models.native import (
    LOSS_OF_PREDICTOR,
    SavedModel,
    check_replaceable,
    save_model,
)
from spark_fm.formats.models.sagemaker import read_sagemaker
from spark_fm.formats.models.text import read_text

USAGE = "--from FORMAT SOURCE --model PATH [more flags]"
EXAMPLE = """examples:
  spark-fm import --from sagemaker model.tar.gz --model fm.model
  spark-fm import --from libfm fm.libfm --predictor-type regressor --model fm.model
  spark-fm import --from text fm.txt --model fm.model
"""
SAGEMAKER, LIBFM, TEXT = "sagemaker", "libfm", "text"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE",
        help="sagemaker: model.tar.gz, the model_algo-1 in it, a list of MXNet arrays, "
        "such as params, or a folder with any of them unpacked; "
        "libfm: a file from -save_model; text: a file from 'spark-fm export --to text'",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="source_format", required=True, choices=(SAGEMAKER, LIBFM, TEXT),
        help="format of SOURCE",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="PATH", help="folder for the model")
    parser.add_argument(
        "--predictor-type", choices=tuple(LOSS_OF_PREDICTOR),
        help="predictor type, if SOURCE does not contain it (libfm never does)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, metavar="NUMBER",
        help="classification threshold [SOURCE's, or 0.5]",
    )  # fmt: skip
    parser.add_argument(
        "--max-bytes", type=int, default=MAX_BYTES, metavar="N",
        help="refuse an archive that unpacks to more [%(default)s]",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing model")


def run(args: argparse.Namespace) -> None:
    if args.max_bytes < 1:
        raise UsageError(f"--max-bytes {args.max_bytes} is not allowed: expected 1 or more.")
    check_replaceable(args.model, overwrite=args.overwrite)
    model = _read(args)
    save_model(args.model, model, overwrite=args.overwrite)
    weights = model.weights
    print(
        f"imported a {model.params['predictorType']} of {weights.feature_dim:,} features and "
        f"{weights.k} factors to {args.model}"
    )


def _read(args: argparse.Namespace) -> SavedModel:
    kind, threshold = args.predictor_type, args.threshold
    if args.source_format == SAGEMAKER:
        return read_sagemaker(
            args.source, predictor_type=kind, threshold=threshold, max_bytes=args.max_bytes
        )
    if args.source_format == TEXT:
        return read_text(args.source, predictor_type=kind, threshold=threshold)
    if kind is None:
        raise UsageError(
            "--predictor-type is needed: libFM's file does not tell a regressor (-task r) from a "
            "binary_classifier (-task c)."
        )
    return read_libfm(
        args.source, predictor_type=kind, threshold=0.5 if threshold is None else threshold
    )
