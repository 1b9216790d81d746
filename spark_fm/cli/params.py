"""Flags and JSON files to Params."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pyspark.ml.param import Param, Params, TypeConverters

from spark_fm.cli.errors import UsageError
from spark_fm.cli.wording import NUM_FEATURES, kebab
from spark_fm.ml.foreign_names import nearest_names
from spark_fm.ml.params import PARAMS

_DEST_PREFIX = "param_"
_TYPES: dict[Any, type] = {
    TypeConverters.toInt: int,
    TypeConverters.toFloat: float,
    TypeConverters.toString: str,
    TypeConverters.toBoolean: bool,
}


class _HelpAll(argparse.Action):
    """Print the help of all flags, those of advanced Params included."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for action in parser._actions:
            action.help = getattr(action, "advanced_help", action.help)
        parser.print_help()
        parser.exit()


def add_param_flags(parser: argparse.ArgumentParser, stage: Params) -> None:
    """Add a flag for every Param of ``stage``, described by the Param's own text.

    ``--help`` shows those of basic Params, ``--help-all`` all.
    """
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, help="show the flags of all parameters, and exit"
    )
    group = parser.add_argument_group(
        "parameters",
        "They override --set, which overrides the --params file. --help-all shows all of them.",
    )
    basic = {row.name for row in PARAMS if row.is_basic}
    for param in sorted(stage.params, key=lambda param: param.name not in basic):
        if param.name == NUM_FEATURES:
            continue
        text = param.doc.replace("%", "%%") + _default_text(stage, param)
        kind = _TYPES[param.typeConverter]
        flag, dest = f"--{kebab(param.name)}", _DEST_PREFIX + param.name
        if kind is bool:
            action = group.add_argument(
                flag, dest=dest, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            metavar = {int: "N", float: "X", str: "TEXT"}[kind]
            action = group.add_argument(flag, dest=dest, type=kind, metavar=metavar, help=text)
        if param.name not in basic:
            action.advanced_help, action.help = text, argparse.SUPPRESS  # type: ignore[attr-defined]


def add_set_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--set name=value``."""
    parser.add_argument(
        "--set", dest="assignments", metavar="NAME=VALUE", action="append", default=[],
        help="set a Param by its own name, such as threshold=0.3; may be repeated",
    )  # fmt: skip


def collect_params(args: argparse.Namespace, stage: Params) -> dict[str, Any]:
    """Return the Params of ``stage`` that file, ``--set`` and flags set; later ones override."""
    values: dict[str, Any] = {}
    path = getattr(args, "params", None)
    if path is not None:
        content = json_object(path, "--params")
        for name in content:
            check_name(name, stage, f"--params {path}")
        values |= {name: value for name, value in content.items() if value is not None}
    for assignment in args.assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r} is not name=value, such as numFactors=8.")
        check_name(name, stage, f"--set {assignment}")
        values[name] = parse_value(name, text, stage)
    for dest, value in vars(args).items():
        if dest.startswith(_DEST_PREFIX) and value is not None:
            values[dest.removeprefix(_DEST_PREFIX)] = value
    if getattr(args, "num_features", None) is not None and stage.hasParam(NUM_FEATURES):
        values[NUM_FEATURES] = args.num_features
    return {name: convert_value(name, value, stage) for name, value in values.items()}


def check_name(name: str, stage: Params, where: str) -> None:
    """Raise UsageError, with similar names, unless ``stage`` has this Param."""
    names = [param.name for param in stage.params]
    if name in names:
        return
    hint = nearest_names(name, names) or f"known are {', '.join(sorted(names))}."
    raise UsageError(f"{where}: unknown parameter {name!r}; {hint}")


def convert_value(name: str, value: Any, stage: Params) -> Any:
    """Return the value as the Param's type; raise UsageError for a value of another type."""
    param = stage.getParam(name)
    try:
        if isinstance(value, bool) != (_TYPES[param.typeConverter] is bool):
            raise TypeError
        return param.typeConverter(value)  # type: ignore[misc]  # no method of Param
    except (TypeError, ValueError) as err:
        expected = _TYPE_NAMES[_TYPES[param.typeConverter]]
        raise UsageError(
            f"{name}={value!r} is not allowed: expected {expected} ({param.doc})."
        ) from err


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def json_object(path: str, flag: str) -> dict[str, Any]:
    """Return the content of the JSON file that a flag names; UsageError unless it is an object."""
    try:
        content = json.loads(Path(path).read_bytes())  # with or without a byte-order mark
    except OSError as err:
        raise UsageError(f"{flag} {path} cannot be read: {err.strerror}.") from err
    except ValueError as err:
        raise UsageError(f"{flag} {path} is not JSON: {err}.") from err
    if not isinstance(content, dict):
        raise UsageError(
            f"{flag} {path} holds a {type(content).__name__}; expected an object such as "
            '{"name": 8}.'
        )
    return content


def parse_value(name: str, text: str, stage: Params) -> Any:
    """Return a text as a Param's value; the text itself where it is not of the Param's type."""
    kind = _TYPES[stage.getParam(name).typeConverter]
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return words.get(text.lower(), text)
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        return text  # refused by ``convert_value``, with the Param's own text


def _default_text(stage: Params, param: Param[Any]) -> str:
    if not stage.hasDefault(param):
        return ""
    value = stage.getOrDefault(param)
    return "" if value == "" else f" [{json.dumps(value) if value is not None else 'unset'}]"


def apply_params(stage: Any, values: dict[str, Any]) -> Any:
    """Return a copy of ``stage`` with these Params set."""
    return stage.copy({stage.getParam(name): value for name, value in values.items()})
