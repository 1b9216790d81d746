"""Open an artifact of SageMaker down to its arrays, without MXNet.

``model.tar.gz`` holds ``model_algo-1``, a zip of ``symbol.json`` (the network), ``params``
(its arrays) and ``meta.json`` (the training's hyperparameters). All of it is untrusted.
"""

from __future__ import annotations

import io
import json
import posixpath
from dataclasses import dataclass
from typing import Any

from spark_fm.errors import ModelFormatError
from spark_fm.formats.archives import MAX_BYTES, read_members, read_zip
from spark_fm.formats.artifact import LOSSES
from spark_fm.formats.ndarrays import Stored, read_ndarrays

LAYER = "model_algo-"
META = "meta.json"
SPARSE, DENSE = "sparse", "dense"
# Factors, linear weights and bias of each network.
NAMES = {
    SPARSE: ("v", "w1_weight", "w0_weight"),
    DENSE: ("v", "Linear_Plus_Bias_weight", "Linear_Plus_Bias_bias"),
}
# Layers of MXNet whose loss tells the kind of model.
HEADS = {
    "LogisticRegressionOutput": "binary_classifier",
    "LinearRegressionOutput": "regressor",
}
ARGUMENT = "arg:"
MAX_JSON_BYTES = 2**22
MAX_NESTING = 64
LINEAR_LEARNER = "additional-params.json"


@dataclass(frozen=True, slots=True, eq=False)
class SageMakerArtifact:
    """What lies in an artifact of an algorithm of SageMaker that uses MXNet.

    Parameters
    ----------
    source : str
        Where it was read.
    arrays : dict of str to array
        By name, without MXNet's ``arg:``; None where MXNet saved none.
    symbol : dict
        The network; empty when it is not there.
    documents : dict
        The other JSON members by name, such as ``meta.json``.
    """

    source: str
    arrays: dict[str, Stored | None]
    symbol: dict[str, Any]
    documents: dict[str, Any]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Training hyperparameters by SageMaker's names; empty when not kept."""
        found = self._meta.get("training_parameters", {})
        if not isinstance(found, dict):
            raise ModelFormatError(
                f"{self.source} has training_parameters in {META} that are no JSON object."
            )
        return found

    @property
    def _meta(self) -> dict[str, Any]:
        meta = self.documents.get(META, {})
        if not isinstance(meta, dict):
            raise ModelFormatError(f"{self.source} has a {META} that is no JSON object.")
        return meta

    @property
    def ours(self) -> dict[str, Any]:
        """What ``write_sagemaker`` put into ``meta.json``; empty for SageMaker's own."""
        found = self._meta.get("spark_fm", {})
        return found if isinstance(found, dict) else {}

    @property
    def network(self) -> str | None:
        """``"sparse"``, ``"dense"``, or None when it is no factorization machine."""
        names = set(self.arrays)
        if "v" in names:
            for network, (_, linear, bias) in NAMES.items():
                if {linear, bias} & names:
                    return network
        return None

    @property
    def predictor_type(self) -> str | None:
        """What ``meta.json`` or the network's last layer says; None when neither does."""
        told = self.hyperparameters.get("predictor_type")
        if told is not None:
            if not isinstance(told, str) or told not in LOSSES:
                raise ModelFormatError(
                    f"{self.source} has predictor_type {told!r} in {META}; expected "
                    f"{' or '.join(LOSSES)}."
                )
            return told
        nodes = self.symbol.get("nodes", [])
        operators = [node.get("op") for node in nodes if isinstance(node, dict)]
        kinds = {kind for operator, kind in HEADS.items() if operator in operators}
        return kinds.pop() if len(kinds) == 1 else None

    def describe(self) -> str:
        """Say in a few words what the artifact is."""
        arrays = ", ".join(
            f"{_printable(name)} {'without a shape' if array is None else array.shape}"
            for name, array in list(self.arrays.items())[:10]
        )
        if LINEAR_LEARNER in self.documents:
            return f"a model of SageMaker's linear learner (arrays {arrays})"
        if self.network:
            return f"a factorization machine, {self.network} network (arrays {arrays})"
        return f"another network of MXNet (arrays {arrays or 'none'})"


def open_sagemaker(path: str, *, max_bytes: int = MAX_BYTES) -> SageMakerArtifact:
    """Open an artifact down to its arrays.

    Parameters
    ----------
    path : str
        ``model.tar.gz``, the zip ``model_algo-1`` in it, or a folder with what either
        unpacks to; of a store too, such as ``s3://``, but for folders.
    max_bytes : int
        Most bytes that a layer may unpack to.

    Raises
    ------
    ModelFormatError
        For what is no artifact, is damaged, or is refused as dangerous.

    Notes
    -----
    Nothing is written to disk. In memory: the zip and ``params``, of which dense arrays are views.
    """
    members = _innermost(path, max_bytes)
    found = {_base(name): data for name, data in members.items()}
    if len(found) < len(members):
        raise ModelFormatError(f"{path} holds several members of one name: {', '.join(members)}.")
    params = [name for name in found if _is_params(name)]
    if len(params) != 1:
        raise ModelFormatError(
            f"{path} is no artifact of SageMaker: it holds {len(params)} files of parameters, "
            f"among {', '.join(found) or 'nothing that is known'}; expected one, called params."
        )
    documents = {name: _json(data, path, name) for name, data in found.items()
                 if name.endswith(".json")}  # fmt: skip
    symbols = [name for name in documents if name.endswith("symbol.json")]
    symbol = documents.pop(symbols[0]) if symbols else {}
    if not isinstance(symbol, dict) or not isinstance(symbol.get("nodes", []), list):
        raise ModelFormatError(f"{path} has a {symbols[0]} that describes no network of MXNet.")
    source = f"{path}: {params[0]}"
    arrays: dict[str, Stored | None] = {}
    for name, array in read_ndarrays(found[params[0]], source=source):
        plain = name.removeprefix(ARGUMENT)
        if plain in arrays:
            raise ModelFormatError(f"{source} has two arrays called {plain!r}.")
        arrays[plain] = array
    return SageMakerArtifact(path, arrays, symbol, documents)


def _innermost(path: str, max_bytes: int) -> dict[str, bytes]:
    """Return the members of the zip; the layers around it are let go."""
    members = read_members(path, _is_wanted, max_bytes=max_bytes)
    layers = [name for name in members if _base(name).startswith(LAYER)]
    if not layers:
        return members
    layer = min(layers)
    inner = io.BytesIO(members.pop(layer))
    return read_zip(inner, _is_wanted, f"{path}: {layer}", max_bytes=max_bytes)


def _json(data: bytes, path: str, name: str) -> Any:
    if len(data) > MAX_JSON_BYTES:  # parsed, it takes some thirty times as much
        raise ModelFormatError(
            f"{path} is refused: its {name} has {len(data):,} bytes, more than "
            f"{MAX_JSON_BYTES:,}. An artifact of a training describes itself in less."
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ModelFormatError(f"{path} has a {name} that is no JSON: {err}.") from err
    level, depth = [found], 0
    while level:  # not by recursion, which is what deep nesting is to bring down
        if depth > MAX_NESTING:
            raise ModelFormatError(f"{path} has a {name} nested deeper than {MAX_NESTING} levels.")
        inner = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level, depth = [value for values in inner for value in values], depth + 1
    return found


def _printable(name: str) -> str:
    return name[:100].encode("unicode_escape").decode()  # no orders to a terminal


def _base(name: str) -> str:
    return posixpath.basename(name)


def _is_params(name: str) -> bool:
    return name == "params" or name.endswith(".params")


def _is_wanted(name: str) -> bool:
    base = _base(name)
    return base.startswith(LAYER) or base.endswith(".json") or _is_params(base)
