"""A model as an ONNX graph, for runtimes that know nothing of Spark or of us.

Two inputs are possible: dense rows, and the non-zeros of sparse rows, whose cost does not
depend on the number of features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm._version import __version__
from spark_fm.errors import InvalidParamError
from spark_fm.formats.files import atomic_write, local_path
from spark_fm.formats.models.native import SavedModel
from spark_fm.learner.losses import LOSSES

DENSE, SPARSE = "dense", "sparse"
INPUTS = (DENSE, SPARSE)
OPSET, ML_OPSET, IR_VERSION = 17, 3, 8  # of 2022: onnxruntime 1.12 and newer
MAX_BYTES = 2**31 - 2**20  # of parameters: protobuf writes no message of 2 GiB
ML_DOMAIN = "ai.onnx.ml"


def write_onnx(path: str, model: SavedModel, *, inputs: str = DENSE) -> None:
    """Write a model as a local ONNX file.

    Dense inputs are ``features``, float32 of shape (rows, featureDim); sparse ones ``indices``,
    int64, and ``values``, float32, both of shape (rows, entries), where rows with fewer entries
    are filled up with the value 0 at any index that exists. Raises ImportError without onnx, and
    InvalidParamError for other inputs and for parameters of 2 GiB or more.

    Outputs are ``score``, float32 of shape (rows,), and of a classifier ``predicted_label``,
    float32, 0.0 or 1.0. The sums are float32, in the runtime's order. An index may
    come once in a row: the square of a sum is not the sum of squares. The sparse graph
    takes a feature that the model has no row for as 0, and refuses an index outside the
    table of a model that has all rows. O(rows x featureDim x k), or O(rows x entries x k).
    """
    if inputs not in INPUTS:
        raise InvalidParamError(f"inputs={inputs!r} is not allowed: expected {', '.join(INPUTS)}.")
    weights = model.weights
    n_bytes = weights.table.nbytes + len(weights.table) * 20  # with ids and squares
    if n_bytes > MAX_BYTES:
        raise InvalidParamError(
            f"The model has {n_bytes:,} bytes of parameters in an ONNX graph of {inputs} inputs; "
            f"at most {MAX_BYTES:,} fit into one. Use the sagemaker or text format."
        )
    try:
        import onnx
    except ImportError as err:
        raise ImportError("Writing ONNX needs onnx: pip install 'spark-fm[onnx]'.") from err
    graph = _Graph(onnx)
    margin = _dense_margin(graph, model) if inputs == DENSE else _sparse_margin(graph, model)
    _score(graph, model, margin)
    whole = graph.model({
        "predictor_type": model.params["predictorType"],
        "feature_dim": str(model.weights.feature_dim),
        "num_factors": str(model.weights.k),
        "threshold": repr(float(model.params["threshold"])),
    })  # fmt: skip
    onnx.checker.check_model(whole)
    with atomic_write(local_path(path, "path")) as file:
        file.write(whole.SerializeToString(deterministic=True))


class _Graph:
    """Nodes, constants, inputs and outputs of a graph that grows."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._uses_ml = False

    def input(self, name: str, dtype: Any, shape: list[str | int]) -> str:
        """Add an input and return its name."""
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str) -> None:
        """Make a float32 value of shape (rows,) an output."""
        kind = self._onnx.TensorProto.FLOAT
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, kind, ["rows"]))

    def constant(self, name: str, value: Any) -> str:
        """Add a constant and return its name."""
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add an operator and return the name of its first output."""
        self._uses_ml |= attributes.get("domain") == ML_DOMAIN
        make = self._onnx.helper.make_node
        self._nodes.append(make(operator, inputs, list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def model(self, metadata: dict[str, str]) -> Any:
        """Return the whole as a model."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, "factorization_machine", self._inputs, self._outputs, self._constants
        )
        domains = [helper.make_opsetid("", OPSET)]
        if self._uses_ml:
            domains.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))
        whole = helper.make_model(
            graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="spark_fm",
            producer_version=__version__,
        )  # fmt: skip
        helper.set_model_props(whole, metadata)
        return whole


def _dense_margin(graph: _Graph, model: SavedModel) -> str:
    """Add w0 + x w + 1/2 sum_f ((x V)_f^2 - (x^2 V^2)_f); Rendle 2010, eq. (5)."""
    weights = model.weights
    x = graph.input("features", np.float32, ["rows", weights.feature_dim])
    if weights.features is not None:
        ids = graph.constant("ids", weights.features.astype(np.int64))
        x = graph.node("Gather", [x, ids], "seen_features", axis=1)
    factors = weights.factors
    with np.errstate(over="ignore"):
        own = (factors * factors).sum(axis=1, keepdims=True)  # of each feature with itself
    sums = graph.node("MatMul", [x, graph.constant("v", factors)], "sums")
    squares = graph.node("Mul", [sums, sums], "sums_squared")
    axis = graph.constant("last_axis", np.array([1], np.int64))
    pairs = graph.node("ReduceSum", [squares, axis], "all_pairs", keepdims=1)
    x_squared = graph.node("Mul", [x, x], "features_squared")
    self_pairs = graph.node("MatMul", [x_squared, graph.constant("v_squared", own)], "own_pairs")
    linear = graph.node("MatMul", [x, graph.constant("w", weights.linear[:, None])], "linear")
    twice = graph.node("Sub", [pairs, self_pairs], "pairs_twice")
    column = _added(graph, model, linear, twice)
    return graph.node("Squeeze", [column, axis], "margin")


def _sparse_margin(graph: _Graph, model: SavedModel) -> str:
    """Add the same over the entries of each row alone."""
    weights = model.weights
    indices = graph.input("indices", np.int64, ["rows", "entries"])
    values = graph.input("values", np.float32, ["rows", "entries"])
    table: NDArray[np.float32] = weights.table
    if weights.features is not None:
        n = len(weights.features)  # the row of zeros for what is not there
        table = np.concatenate([table, np.zeros((1, weights.k + 1), np.float32)])
        encoding = {
            "keys_int64s": weights.features.tolist() or [-1],
            "values_int64s": list(range(n)) or [0],
        }
        indices = graph.node(
            "LabelEncoder", [indices], "places", domain=ML_DOMAIN, default_int64=n, **encoding
        )
    rows = graph.node("Gather", [graph.constant("table", table), indices], "rows_of_table", axis=0)
    last = graph.constant("last", np.array([-1], np.int64))
    scale = graph.node("Unsqueeze", [values, last], "values_as_column")
    terms = graph.node("Mul", [rows, scale], "terms")
    sizes = graph.constant("sizes", np.array([weights.k, 1], np.int64))
    graph.node("Split", [terms, sizes], "factor_terms", "linear_terms", axis=2)
    entries = graph.constant("entries_axis", np.array([1], np.int64))
    sums = graph.node("ReduceSum", ["factor_terms", entries], "sums", keepdims=0)
    squared_terms = graph.node("Mul", ["factor_terms", "factor_terms"], "terms_squared")
    own = graph.node("ReduceSum", [squared_terms, entries], "own_pairs_by_factor", keepdims=0)
    squares = graph.node("Mul", [sums, sums], "sums_squared")
    difference = graph.node("Sub", [squares, own], "pairs_twice_by_factor")
    twice = graph.node("ReduceSum", [difference, last], "pairs_twice", keepdims=0)
    both = graph.constant("both_axes", np.array([1, 2], np.int64))
    linear = graph.node("ReduceSum", ["linear_terms", both], "linear", keepdims=0)
    return _added(graph, model, linear, twice)


def _added(graph: _Graph, model: SavedModel, linear: str, pairs_twice: str) -> str:
    """Add w0, the linear part and half of the doubled pairs."""
    half = graph.constant("half", np.float32(0.5))
    pairs = graph.node("Mul", [pairs_twice, half], "pairs")
    bias = graph.constant("w0", np.float32(model.weights.bias))
    with_bias = graph.node("Add", [linear, bias], "linear_and_bias")
    return graph.node("Add", [with_bias, pairs], "sum_of_parts")


def _score(graph: _Graph, model: SavedModel, margin: str) -> None:
    """Add the outputs."""
    if not LOSSES[model.loss].is_classifier:
        graph.node("Identity", [margin], "score")
        graph.output("score")
        return
    score = graph.node("Sigmoid", [margin], "score")
    graph.output("score")
    double, single = 11, 1  # TensorProto's DOUBLE and FLOAT
    precise = graph.node("Cast", [score], "score_as_double", to=double)  # as the threshold is
    threshold = graph.constant("threshold", np.float64(model.params["threshold"]))
    reached = graph.node("GreaterOrEqual", [precise, threshold], "reached")
    graph.node("Cast", [reached], "predicted_label", to=single)
    graph.output("predicted_label")
