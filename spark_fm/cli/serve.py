"""``spark-fm serve``: answer requests for scores over HTTP; no Spark."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from typing import Any

from spark_fm.cli.errors import UsageError
from spark_fm.serving.settings import CONTAINER_MODEL, ServeSettings, container_values

USAGE = "[MODEL] [flags]"
EXAMPLE = """example:
  spark-fm serve a9a.model --workers 2
  curl -s localhost:8080/invocations -H 'Content-Type: application/json' -d \\
    '{"instances": [{"data": {"features": {"keys": [2, 10], "shape": [123], "values": [1, 1]}}}]}'

SIGTERM and SIGINT stop the server when requests in flight are answered; SIGHUP, or another
version saved at MODEL, makes it read the model again.
"""
_NEEDED = ("starlette", "uvicorn", "httptools", "prometheus_client")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command; those without a value may come from the environment."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a saved model; a folder of such, of which the one saved last is served; SageMaker's "
        f"model.tar.gz or model_algo-1; or a link to any [{CONTAINER_MODEL} where that exists]",
    )  # fmt: skip
    parser.add_argument(
        "--host", help="address to listen on [127.0.0.1; 0.0.0.0 without MODEL, in a container]"
    )
    _number(parser, "--port", "port to listen on, 0 for a free one [8080]")
    _number(parser, "--workers", "processes that score; they share one copy of the model [1]")
    _number(parser, "--max-payload-mb", "largest request body in MiB, 1 to 100 [6]")
    _number(parser, "--max-requests", "requests a worker holds at once [512]")
    _number(
        parser,
        "--max-held-mb",
        "MiB of request bodies a worker holds at once [96, or twice --max-payload-mb if more]",
    )
    _number(parser, "--threads", "threads a worker decodes large bodies in [2]")
    _seconds(parser, "--head-seconds", "for a request's head to arrive [10]")
    _seconds(parser, "--body-seconds", "for a request's body to arrive [30]")
    _seconds(parser, "--idle-seconds", "between two requests of a connection [75]")
    _seconds(parser, "--grace-seconds", "for requests in flight when the server stops [30]")
    _seconds(parser, "--reload-seconds", "between looks for a new model, 0: on SIGHUP only [2]")
    parser.add_argument(
        "--access-log", action="store_true", default=None, help="a line for each request"
    )


def run(args: argparse.Namespace) -> None:
    """Serve until told to stop."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"'spark-fm serve' needs {', '.join(missing)}: install the [serve] extra, for example "
            "with pip install 'spark-fm[serve]'."
        )
    from spark_fm.serving.supervisor import Supervisor

    model, settings = model_and_settings(args)
    Supervisor(model, settings, log_level=args.log_level).run()


def model_and_settings(args: argparse.Namespace) -> tuple[str, ServeSettings]:
    """Return what to serve and how: flags come before the environment.

    Raises
    ------
    UsageError
        Without MODEL, outside a container.
    InvalidParamError
        For a value outside its range.
    """
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


def _number(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    parser.add_argument(flag, type=int, metavar="N", help=text)


def _seconds(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    parser.add_argument(flag, type=float, metavar="S", help=text)
