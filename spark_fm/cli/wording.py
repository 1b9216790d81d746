"""Messages of the library in the words of whom they are for: flags, or a job's hyperparameters.

The library speaks of Params, columns and options, as Python code sets them. A command has flags
for most of them, and a training container knows hyperparameters and channels.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.util import find_spec

# Set by --num-features, which the readers need to know as well.
NUM_FEATURES = "featureDim"


def kebab(name: str) -> str:
    """Return the flag's spelling of a Param: ``numFactors`` is ``num-factors``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "-" + match[1].lower(), name)


class Audience(Enum):
    """Whom messages are for; the library's own words are for Python code."""

    CODE = "sets Params"
    FLAGS = "train, tune and convert, which have a flag for every Param that they take"
    SETTINGS = "evaluate and score, which set Params of a model by --set"
    JOB = "a training container, which knows hyperparameters and channels"


class _Listener:
    audience = Audience.CODE


_listener = _Listener()


def speak_to(audience: Audience) -> None:
    """Put what the library says from here on in the words of this audience."""
    _listener.audience = audience


def worded(text: str) -> str:
    """Return what the library says in the words of the audience."""
    if _listener.audience is Audience.CODE or find_spec("pyspark") is None:
        return text
    return reworded(text, _listener.audience)


# What neither a command nor a job can do, or calls otherwise; each is a whole piece of advice.
_EVERYWHERE = (
    (r",? or leave such records out by the option mode=DROPMALFORMED", ""),
    (r" \(n_features, option featureDim\)", " (featureDim)"),
    (r"[Ss]et the option featureDim(, such as \.option\([^)]*\))?", "Set featureDim"),
    (r" or the column's metadata", ""),
    (r"(Cast it to array<double>|Make vectors [^.;]*), or set featuresCol",
     "Name such a column by featuresCol"),
)  # fmt: skip
_OF_COMMANDS = (
    (r"\b\w+Col=('[^']*') (has|holds) ", r"the column \1 \2 "),
    (r"the Lr and InitSigma parameters", "the --*-lr and --*-init-sigma flags"),
)
_OF_JOBS = (
    (r",? or set [^.;]*\bhandleInvalid=[^.;]*", ""),
    (r"\b\w+Col='[^']*' (has|holds) ", r"the channel \1 "),
    (r"Leave standardization on, or scale", "Scale"),
    (r"the Lr and InitSigma parameters", "*_lr and *_init_sigma"),
    (r"set spark\.task\.maxFailures, or [^;]*; if memory is short, use fewer cores",
     "if memory is short, use a larger instance"),
    (r"Start it with more \(spark\.driver\.memory\), or lower numFactors or the size of the grid",
     "Use a larger instance, or lower numFactors"),
    (r"use a larger driver", "use a larger instance"),
    (r"checkpointDir=(.*) cannot be (.*)\. Give a folder[^.]*",
     r"\1 cannot be \2. Let the job write there"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Names:
    """What Params are called in messages, and by jobs."""

    mentioned: re.Pattern[str]
    hyperparameters: dict[str, str]  # by Param
    on_models: frozenset[str]


@cache
def _names() -> _Names:
    from spark_fm.ml.hyperparameters import HYPERPARAMETERS, param_name  # Spark's modules, too
    from spark_fm.ml.params import PARAMS

    # A name alone is a Param's only if it is no word of English, too.
    mentioned = re.compile(
        r"(?<![\w./'\"-])(?<!Hyperparameter )(?P<set>[Ss]et )?(?:"
        rf"(?P<name>{'|'.join(row.name for row in PARAMS)})"
        r"=(?P<value>'[^']*'|\"[^\"]*\"|[\w+-]+(?:\.\w+)*)"
        rf"|(?P<alone>{'|'.join(row.name for row in PARAMS if row.name != row.name.lower())})\b)"
    )
    on_models = {row.name for row in PARAMS if row.on_model} | {"labelCol", "weightCol"}
    return _Names(
        mentioned, {param_name(name): name for name in HYPERPARAMETERS}, frozenset(on_models)
    )


def reworded(text: str, audience: Audience) -> str:
    """Return a message in the words of an audience."""
    own = _OF_JOBS if audience is Audience.JOB else _OF_COMMANDS
    names = _names()
    for pattern, instead in (*_EVERYWHERE, *own):
        text = re.sub(pattern, instead, text)

    def in_words(match: re.Match[str]) -> str:
        name, value = match["name"] or match["alone"], match["value"]
        if audience is Audience.JOB:
            known = names.hyperparameters.get(name, name)
            return (match["set"] or "") + known + ("" if value is None else f"={value}")
        if audience is Audience.SETTINGS and name not in (*names.on_models, NUM_FEATURES):
            return match[0]
        verb = {"Set ": "Give ", "set ": "give "}.get(match["set"], "")
        return verb + _as_flag(name, value, is_set=audience is Audience.SETTINGS)

    return names.mentioned.sub(in_words, text)


def _as_flag(name: str, value: str | None, *, is_set: bool) -> str:
    """Return the flag that sets a Param, with its value where there is one."""
    shown = None if value is None else shlex.quote(value.strip("'\""))
    if name == NUM_FEATURES:
        return "--num-features" + (f" {shown}" if shown else "")
    if is_set:
        return f"--set {name}" + (f"={shown}" if shown else "")
    if value in ("True", "False"):
        return f"--{'no-' if value == 'False' else ''}{kebab(name)}"
    return f"--{kebab(name)}" + (f" {shown}" if shown else "")
