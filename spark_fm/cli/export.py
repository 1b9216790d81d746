"""``spark-fm export``: a saved model to another format; no Spark or Java."""

from __future__ import annotations

import argparse
import os

from spark_fm.cli.errors import UsageError
from spark_fm.cli.outputs import check_output_file
from spark_fm.formats.models.libfm import write_libfm
from spark_fm.formats.models.native import read_model
from spark_fm.formats.models.onnx import DENSE, INPUTS, write_onnx
from spark_fm.formats.models.sagemaker import NAMES, SPARSE, write_sagemaker
from spark_fm.formats.models.text import write_text

USAGE = "--to FORMAT --model PATH --output FILE [more flags]"
EXAMPLE = """examples:
  spark-fm export --to sagemaker --model fm.model --output model.tar.gz
  spark-fm export --to onnx --inputs sparse --model fm.model --output fm.onnx
  spark-fm export --to text --model fm.model --output fm.txt
"""
SAGEMAKER, LIBFM, TEXT, ONNX = "sagemaker", "libfm", "text", "onnx"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", dest="output_format", required=True, choices=(SAGEMAKER, LIBFM, TEXT, ONNX),
        help="format of the output",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="PATH", help="a saved model")
    parser.add_argument("--output", required=True, metavar="FILE", help="a local file")
    parser.add_argument(
        "--network", choices=tuple(NAMES),
        help=f"which of SageMaker's networks [{SPARSE}]; the dense one stores all features",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", choices=INPUTS,
        help=f"inputs of the ONNX graph [{DENSE}]: rows of all features, or indices and values",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing output")


def run(args: argparse.Namespace) -> None:
    for flag, value, output_format in (
        ("--network", args.network, SAGEMAKER),
        ("--inputs", args.inputs, ONNX),
    ):
        if value is not None and args.output_format != output_format:
            raise UsageError(f"{flag} belongs to --to {output_format}; leave it out.")
    check_output_file(args.output, overwrite=args.overwrite)
    if os.path.isdir(args.output):
        raise UsageError(f"--output {args.output} is a folder; name a file in it.")
    model = read_model(args.model)
    if args.output_format == SAGEMAKER:
        write_sagemaker(args.output, model, network=args.network or SPARSE)
    elif args.output_format == ONNX:
        write_onnx(args.output, model, inputs=args.inputs or DENSE)
    elif args.output_format == TEXT:
        write_text(args.output, model)
    else:
        write_libfm(args.output, model)
    print(f"exported {args.model} to {args.output}, {os.path.getsize(args.output):,} bytes")
