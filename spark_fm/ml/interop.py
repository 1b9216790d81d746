"""Import and export of models in other formats; driver only, with or without a session."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyspark.ml.classification import FMClassificationModel
from pyspark.ml.linalg import DenseVector, SparseVector, Vector
from pyspark.ml.regression import FMRegressionModel

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.models.archives import MAX_BYTES
from spark_fm.formats.models.libfm import read_libfm, write_libfm
from spark_fm.formats.models.native import SavedModel
from spark_fm.formats.models.onnx import write_onnx
from spark_fm.formats.models.sagemaker import read_sagemaker, write_sagemaker
from spark_fm.formats.models.text import read_text, write_text
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import BINARY, LOSSES, REGRESSOR
from spark_fm.learner.weights import FMWeights
from spark_fm.ml.base import FittedModel
from spark_fm.ml.hyperparameters import HyperparameterMethods

if TYPE_CHECKING:
    from typing_extensions import Self

IMPORTED_PARAMS = ("predictorType", "threshold", "numFactors", "featureDim")


class InteropMethods(HyperparameterMethods):
    """Methods that read and write a model in other formats, all without a Spark job."""

    @classmethod
    def from_sagemaker(
        cls,
        path: str | PathLike[str],
        *,
        predictorType: str | None = None,
        threshold: float | None = None,
        maxBytes: int = MAX_BYTES,
    ) -> Self:
        """Read a model artifact of SageMaker's Factorization Machines.

        Parameters
        ----------
        path : str or path
            ``model.tar.gz``, the ``model_algo-1`` in it, a list of MXNet arrays (``params``,
            ``*.params``), or a folder with the contents of any of these.
        predictorType : {"binary_classifier", "regressor"}, optional
            Required if the artifact does not contain it.
        threshold : float, optional
            Smallest score for which the label is 1 (0 to 1); default 0.5, as in SageMaker.
        maxBytes : int
            Largest unpacked size of a layer of the archive; default 4 GiB.

        Returns
        -------
        FactorizationMachineModel
            ``origin["hyperparameters"]`` holds those of the training, by SageMaker's names.

        Raises
        ------
        ModelFormatError
            For an artifact of another algorithm, a damaged one, and archives with links,
            path traversal or duplicate members.
        InvalidParamError
            When the predictor type is unknown, or differs from ``predictorType``.

        Notes
        -----
        Needs no MXNet. Nothing is unpacked to disk; see docs/artifacts.md.
        """
        return cls._of_saved(
            read_sagemaker(
                fspath(path), predictor_type=predictorType, threshold=threshold,
                max_bytes=maxBytes,
            )
        )  # fmt: skip

    def to_sagemaker(self, path: str | PathLike[str], *, network: str = "sparse") -> None:
        """Write ``model.tar.gz`` in the format of SageMaker's Factorization Machines.

        Parameters
        ----------
        path : str or path
            Local file; an existing one is replaced when the new one is complete.
        network : {"sparse", "dense"}
            SageMaker's network for sparse data, or for dense data.

        Raises
        ------
        InvalidParamError
            For a dense network, which has a row for every feature, of more than 4 GiB.
        """
        write_sagemaker(
            fspath(path), self._saved(), network=network, hyperparameters=self.hyperparameters()
        )

    @classmethod
    def from_libfm(
        cls, path: str | PathLike[str], *, predictorType: str, threshold: float = 0.5
    ) -> Self:
        """Read a model that libFM wrote with ``-save_model``.

        Parameters
        ----------
        path : str or path
        predictorType : {"binary_classifier", "regressor"}
            libFM's ``-task c`` or ``r``, which its file does not contain.
        threshold : float
            Smallest score for which the label is 1 (0 to 1).

        Raises
        ------
        ModelFormatError
        """
        return cls._of_saved(
            read_libfm(fspath(path), predictor_type=predictorType, threshold=threshold)
        )

    def to_libfm(self, path: str | PathLike[str]) -> None:
        """Write a local file for libFM's ``-load_model``; it lists all features."""
        write_libfm(fspath(path), self._saved())

    @classmethod
    def from_text(cls, path: str | PathLike[str]) -> Self:
        """Read a file that ``to_text`` wrote; raise ModelFormatError for any other."""
        return cls._of_saved(read_text(fspath(path)))

    def to_text(self, path: str | PathLike[str]) -> None:
        """Write a local text file that ``from_text`` reads back bit for bit."""
        write_text(fspath(path), self._saved())

    def to_onnx(self, path: str | PathLike[str], *, inputs: str = "dense") -> None:
        """Write a local ONNX file.

        Parameters
        ----------
        path : str or path
        inputs : {"dense", "sparse"}
            ``features`` of shape (rows, featureDim), or ``indices`` and ``values`` of
            shape (rows, entries), whose cost does not grow with featureDim.

        Raises
        ------
        ImportError
            Without onnx: install ``spark-fm[onnx]``.
        InvalidParamError
            For a model of 2 GiB or more, which ONNX cannot hold in one file.
        """
        write_onnx(fspath(path), self._saved(), inputs=inputs)

    @classmethod
    def _of_saved(cls, saved: SavedModel) -> Self:
        origin = saved.metadata["origin"]
        model = cls(saved.weights, origin=origin)  # type: ignore[call-arg]  # of the model
        model._set(**{name: saved.params[name] for name in IMPORTED_PARAMS})
        return model

    def _saved(self) -> SavedModel:
        params = {p.name: self.getOrDefault(p) for p in self.params if self.isDefined(p)}
        metadata = {"summary": None, "origin": self._origin}
        return SavedModel(self.weights, self._loss, params, metadata, None)


# Params with the same meaning in MLlib and here, by MLlib's name.
SAME_PARAMS = {
    "featuresCol": "featuresCol",
    "labelCol": "labelCol",
    "predictionCol": "predictionCol",
    "probabilityCol": "probabilityCol",
    "rawPredictionCol": "rawPredictionCol",
    "factorSize": "numFactors",
    "fitIntercept": "useBias",
    "fitLinear": "useLinear",
    "seed": "seed",
}


class MLlibMethods(FittedModel):
    """Methods of MLlib's FMClassificationModel and FMRegressionModel."""

    @classmethod
    def from_mllib(cls, model: FMClassificationModel | FMRegressionModel) -> Self:
        """Convert a model of Spark's own FMClassifier or FMRegressor.

        Parameters
        ----------
        model : FMClassificationModel or FMRegressionModel

        Returns
        -------
        FactorizationMachineModel
            With the same scores up to float32, writing the same columns, and ``score``
            and ``predicted_label`` beside them.

        Raises
        ------
        InvalidParamError
            For any other model.
        InvalidDataError
            For parameters that are not finite, from a training that diverged.

        Notes
        -----
        The parameters are collected on the driver: 8 bytes x numFeatures x (factorSize + 1).
        Thresholds (t0, t1) become ``threshold = t1 / (t0 + t1)``; where the probability is
        exactly that, the label is 1 here and 0 there.
        """
        check_convertible(model)
        converted = cls(weights_of(model))  # type: ignore[call-arg]  # of the model
        kind = BINARY if isinstance(model, FMClassificationModel) else REGRESSOR
        converted._set(predictorType=kind)
        for theirs, ours in SAME_PARAMS.items():
            if model.hasParam(theirs) and model.isDefined(theirs):
                converted._set(**{ours: model.getOrDefault(theirs)})
        if isinstance(model, FMClassificationModel) and model.isSet(model.thresholds):
            low, high = model.getThresholds()
            converted._set(threshold=high / (low + high))
        return converted

    @property
    def intercept(self) -> float:
        """``w0``, by MLlib's name; the same as ``bias``."""
        return float(self.weights.bias)

    @property
    def numClasses(self) -> int:
        """2; a regressor has none (AttributeError)."""
        self._classifier_only("numClasses")
        return 2

    def predictRaw(self, value: Vector) -> DenseVector:
        """Return the vector [-margin, margin] of one feature vector; classifier only."""
        self._classifier_only("predictRaw")
        margin = self._margin(value)
        return DenseVector([-margin, margin])

    def predictProbability(self, value: Vector) -> DenseVector:
        """Return the vector [P(0), P(1)] of one feature vector; classifier only."""
        self._classifier_only("predictProbability")
        score = self._score(value)
        return DenseVector([1.0 - score, score])

    def _predict_vector(self, value: Vector) -> float:
        """Return the predicted label or value of one feature vector."""
        score = self._score(value)
        if self.getPredictorType() == BINARY:
            return float(score >= self.getThreshold())
        return score

    def _score(self, value: Vector) -> float:
        margin = self._margin(value)
        return float(LOSSES[self._loss].link(np.array(margin)))

    def _margin(self, value: Vector) -> float:
        n_features = self.weights.feature_dim
        if isinstance(value, DenseVector) and value.size != n_features:
            raise InvalidDataError(
                f"The dense vector has {value.size} values, the model {n_features} features. Give "
                "it all of them, or a sparse vector with their indices."
            )
        return float(self.weights.margins(batch_of(value))[0])

    def _classifier_only(self, name: str) -> None:
        if self.getPredictorType() != BINARY:
            raise AttributeError(f"a regressor has no {name}")


def batch_of(vector: Vector) -> CsrBatch:
    """Return the one row that a Spark vector holds."""
    if isinstance(vector, SparseVector):
        row = (vector.values, vector.indices, [0, len(vector.indices)])
        return CsrBatch.from_matrix(sp.csr_matrix(row, shape=(1, vector.size)))
    return CsrBatch.from_matrix(vector.toArray())


def check_convertible(model: object) -> None:
    """Raise InvalidParamError unless this is a factorization machine of MLlib."""
    if not isinstance(model, (FMClassificationModel, FMRegressionModel)):
        raise InvalidParamError(
            f"from_mllib got a {type(model).__name__}; expected FMClassificationModel or "
            "FMRegressionModel. Give it the fitted stage itself, such as "
            "pipelineModel.stages[-1]."
        )


def weights_of(model: FMClassificationModel | FMRegressionModel) -> FMWeights:
    """Return the parameters of MLlib's model as ours; O(numFeatures x factorSize)."""
    bias, linear = float(model.intercept), np.asarray(model.linear.toArray())
    # toArray() knows whether the matrix is column- or row-major.
    factors = np.asarray(model.factors.toArray())
    n_features, k = factors.shape
    table: NDArray[np.float32] = np.empty((n_features, k + 1), np.float32)
    with np.errstate(over="ignore"):
        table[:, :k] = factors
        table[:, k] = linear
    if not (np.isfinite(bias) and np.isfinite(table).all()):
        raise InvalidDataError(
            f"{model.uid} has parameters that are NaN, infinite or beyond float32: its training "
            "diverged. Train again with a smaller stepSize."
        )
    return FMWeights(bias, table, n_features)
