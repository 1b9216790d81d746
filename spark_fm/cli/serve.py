"""``spark-fm serve``: answer requests for scores over HTTP; no Spark or Java."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from typing import Any

from spark_fm.cli.errors import UsageError
from spark_fm.serving.settings import (
    CONTAINER_MODEL,
    DEFAULT_HELD_MB,
    ServeSettings,
    container_values,
)

USAGE = "[MODEL] [flags]"
EXAMPLE = """example:
  spark-fm serve a9a.model --workers 2
  curl -s localhost:8080/invocations -H 'Content-Type: application/json' -d \\
    '{"instances": [{"data": {"features": {"keys": [2, 10], "shape": [123], "values": [1, 1]}}}]}'

SIGTERM and SIGINT stop the server once requests in flight are answered; SIGHUP, or another
version saved at MODEL, makes it reload the model.
"""
_REQUIRED_MODULES = ("starlette", "uvicorn", "httptools", "prometheus_client")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command; those without a value may come from the environment."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a saved model; a folder of such, of which the one saved last is served; SageMaker's "
        "artifact, as 'import' takes it; or a link to any of these "
        f"[{CONTAINER_MODEL} if it exists]",
    )  # fmt: skip
    parser.add_argument(
        "--host", help="address to listen on [127.0.0.1; 0.0.0.0 without MODEL, in a container]"
    )
    parser.add_argument(
        "--name", action="append", dest="endpoints", metavar="NAME",
        help="EndpointName that boto3's invoke_endpoint may call this server by; may be repeated "
        "[any]",
    )  # fmt: skip
    for flag, kind, text in (
        ("--port", int, "port to listen on, 0 for a free one [8080]"),
        ("--workers", int, "worker processes, which share one copy of the model [1]"),
        ("--max-payload-mb", int, "largest request body in MiB, 1 to 100 [6]"),
        ("--max-requests", int, "maximum of requests that a worker holds at once [512]"),
        (
            "--max-held-mb",
            int,
            f"MiB of bodies held at once [{DEFAULT_HELD_MB}; two of the largest if more]",
        ),
        ("--threads", int, "threads of a worker that decode large bodies [2]"),
        ("--head-seconds", float, "timeout of a request's head [10]"),
        ("--body-seconds", float, "timeout of a request's body [30]"),
        ("--idle-seconds", float, "timeout between two requests of a connection [75]"),
        ("--grace-seconds", float, "time for requests in flight when the server stops [30]"),
        ("--reload-seconds", float, "interval of checks for a new model, 0: on SIGHUP only [2]"),
    ):
        parser.add_argument(flag, type=kind, metavar={int: "N", float: "S"}[kind], help=text)
    parser.add_argument(
        "--predictor-type", choices=("binary_classifier", "regressor"),
        help="predictor type of an artifact that does not contain it",
    )  # fmt: skip
    parser.add_argument("--access-log", action="store_true", default=None, help="log each request")


def run(args: argparse.Namespace) -> None:
    missing = [name for name in _REQUIRED_MODULES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"'spark-fm serve' needs {', '.join(missing)}: install the [serve] extra, for example "
            "with pip install 'spark-fm[serve]'."
        )
    from spark_fm.serving.supervisor import Supervisor

    model, settings = model_and_settings(args)
    Supervisor(model, settings, log_level=args.log_level).run()


def model_and_settings(args: argparse.Namespace) -> tuple[str, ServeSettings]:
    """Return what to serve and how; flags override the environment."""
    values: dict[str, Any] = container_values(os.environ)
    model = args.model
    if model is None:
        if not os.path.isdir(CONTAINER_MODEL):
            raise UsageError(
                f"MODEL is missing, and there is no {CONTAINER_MODEL}. Name a saved model."
            )
        model = CONTAINER_MODEL
        values["host"] = "0.0.0.0"  # a container's port is published by whoever runs it
    names = ServeSettings.__dataclass_fields__
    values |= {
        name: value for name, value in vars(args).items() if name in names and value is not None
    }
    return model, ServeSettings(**values)
