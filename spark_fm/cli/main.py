"""``spark-fm``: dispatch, logging, errors and exit codes.

``spark-submit`` runs this file, too: it imports nothing of the package before the package's
folder is on the path.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "train": "train a factorization machine on files and save it",
    "tune": "search for the best hyperparameters on files, and save the best model",
    "evaluate": "evaluate a saved model on files with labels",
    "score": "write the scores of a saved model for files",
    "import": "import SageMaker's artifact, or a model of libFM or as text, as a saved model",
    "export": "export a saved model as SageMaker's artifact, libFM's model, text or ONNX",
    "inspect": "show a model's parameters, sizes and metrics, and check that it is complete",
    "convert": "convert files between libsvm, libfm, Parquet, SciPy .npz and recordIO-protobuf",
    "serve": "answer requests for scores over HTTP, as SageMaker's endpoints do",
}
_WITHOUT_SPARK = ("import", "export", "inspect", "convert", "serve")
_AUDIENCES = {
    "train": "FLAGS", "tune": "FLAGS", "convert": "FLAGS", "evaluate": "SETTINGS",
    "score": "SETTINGS",
}  # fmt: skip
LEVELS = ("debug", "info", "warning", "error")


class _Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, with similar names for what is misspelt."""

    _words: Sequence[str] = ()
    commands: Sequence[str] = ()  # one of these is the first word that is no flag

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._check_names(args)
        self._words = args
        return super().parse_known_args(args, namespace)

    def _check_names(self, words: Sequence[str]) -> None:
        """Look for misspelt names first: argparse would tell of a required flag that is missing."""
        from spark_fm.errors import did_you_mean

        for word in words:
            flag = word.partition("=")[0]
            if word == "--":
                return
            if re.match("--?[A-Za-z]", word):
                if flag not in self._option_string_actions:
                    known = [name for name in self._option_string_actions if len(name) > 2]
                    hint = did_you_mean(flag, known)
                    self.error(f"unknown flag {flag}" + (f"; {hint}" if hint else ""))
            elif self.commands:
                if word not in self.commands:
                    hint = did_you_mean(word, self.commands)
                    expected = f"expected one of {', '.join(self.commands)}"
                    self.error(f"unknown command {word!r}; {hint or expected}")
                return

    def error(self, message: str) -> NoReturn:
        from spark_fm.cli.errors import UsageError, table_advice

        if "--format" in message and "required" in message:
            for word in self._words:
                message = table_advice(word) or message
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, by default the process's own, and return the exit code.

    It is 0 on success, 2 for a mistake in the command, its files or columns, 130 when
    interrupted, 143 when terminated, 1 for everything else.
    """
    from spark_fm.cli.errors import explain, forget_interruption
    from spark_fm.cli.wording import Audience, speak_to

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser(words).parse_args(words)
        speak_to(Audience[_AUDIENCES.get(args.command, "CODE")])
        with _logging(args.log_level), warnings.catch_warnings():
            if not args.verbose:
                warnings.filterwarnings("ignore", message="PySpark does not yet fully support")
            import_module(f"spark_fm.cli.{args.command}").run(args)
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except BaseException as err:  # noqa: BLE001 - all become exit codes
        code, text = explain(err)
        if "--verbose" in words:
            traceback.print_exc()
        print(f"spark-fm: error: {text}", file=sys.stderr)
        return code
    finally:
        forget_interruption()
        speak_to(Audience.CODE)
    return 0


def program() -> None:
    """Run a command as a program; leave by SystemExit unless it succeeds.

    Databricks calls this function, and takes no notice of what it returns.
    """
    code = main()
    if code:
        raise SystemExit(code)


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the flags of the command that ``words`` name."""
    from spark_fm._version import __version__
    from spark_fm.spark.required import check_pyspark

    parser = _Parser(
        prog="spark-fm",
        description="Factorization machines on Apache Spark.",
        epilog="'spark-fm COMMAND --help' shows the flags and an example of each command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"spark-fm {__version__}")
    parser.commands = tuple(COMMANDS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((word for word in words if word in COMMANDS), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name != named:
            continue  # its flags need Spark's own modules, which take a second to import
        if name not in _WITHOUT_SPARK:
            check_pyspark(f"spark-fm {name}")
        module = import_module(f"spark_fm.cli.{name}")
        command.usage = f"{command.prog} {module.USAGE}"
        command.epilog = module.EXAMPLE
        module.add_flags(command)
        command.add_argument(
            "--log-level", choices=LEVELS, default="info", help="log level on stderr [info]"
        )
        command.add_argument(
            "--verbose", action="store_true", help="show Spark's warnings, and tracebacks of errors"
        )
    return parser


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from spark_fm.cli.outputs import write_line
        from spark_fm.cli.wording import worded

        write_line(worded(self.format(record)), sys.stderr)


@contextmanager
def _logging(level: str) -> Iterator[None]:
    """Show the library's log on stderr inside the block."""
    logger = logging.getLogger("spark_fm")
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _find_package() -> None:
    """Put the package's parent on the path when this file is run by its own path."""
    here = Path(__file__).resolve()
    if here.parent.name != "cli" or here.parents[1].name != "spark_fm":
        return  # copied elsewhere by spark-submit: --py-files or an installation has it
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != here.parent]
    sys.path.insert(0, str(here.parents[2]))


if __name__ == "__main__":
    if not __package__:
        _find_package()
    program()
