"""Models from and to the formats of others; driver only, with or without a session.

The formats themselves are in ``formats``: ``sagemaker.py``, ``libfm_model.py``, ...
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, cast

from spark_fm.formats.models.archives import MAX_BYTES
from spark_fm.formats.models.libfm import read_libfm, write_libfm
from spark_fm.formats.models.native import SavedModel
from spark_fm.formats.models.onnx import write_onnx
from spark_fm.formats.models.sagemaker import read_sagemaker, write_sagemaker
from spark_fm.formats.models.text import read_text, write_text
from spark_fm.ml.fitted import FittedModel
from spark_fm.ml.summary import FMTrainingSummary

if TYPE_CHECKING:
    from spark_fm.ml.model import FactorizationMachineModel

IMPORTED_PARAMS = ("predictorType", "threshold", "numFactors", "featureDim")


class Exchanging(FittedModel):
    """Methods that read and write a model in other formats, all without a Spark job."""

    _summary: FMTrainingSummary | None
    _origin: dict[str, Any] | None

    @property
    def origin(self) -> dict[str, Any] | None:
        """Where an imported model comes from, with its hyperparameters; else None."""
        return self._origin

    @classmethod
    def from_sagemaker(
        cls,
        path: str | PathLike[str],
        *,
        predictorType: str | None = None,
        threshold: float | None = None,
        maxBytes: int = MAX_BYTES,
    ) -> FactorizationMachineModel:
        """Read the artifact that SageMaker's Factorization Machines left.

        Parameters
        ----------
        path : str or path
            ``model.tar.gz``, the ``model_algo-1`` in it, or a folder with what either
            unpacks to.
        predictorType : {"binary_classifier", "regressor"}, optional
            Needed where the artifact does not tell.
        threshold : float, optional
            Score from which the label is 1 (0 to 1); default 0.5, as SageMaker has it.
        maxBytes : int
            Most bytes that a layer of the archive may unpack to; default 4 GiB.

        Returns
        -------
        FactorizationMachineModel
            ``origin["hyperparameters"]`` has those of the training, by SageMaker's names.

        Raises
        ------
        ModelFormatError
            For an artifact of another algorithm, a damaged one, and archives with what
            no artifact has: links, names that lead out, members that come twice.
        InvalidParamError
            When the predictor type is not known, or is another than asked for.

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
        """Write ``model.tar.gz`` as SageMaker's Factorization Machines leave it.

        Parameters
        ----------
        path : str or path
            Local file; one that is there is replaced when the new one is complete.
        network : {"sparse", "dense"}
            SageMaker's network for sparse data, or for dense data.

        Raises
        ------
        InvalidParamError
            For a dense network beyond 4 GiB, which has a row for every feature.
        """
        model = cast("FactorizationMachineModel", self)
        write_sagemaker(
            fspath(path), self._saved(), network=network, hyperparameters=model.hyperparameters()
        )

    @classmethod
    def from_libfm(
        cls, path: str | PathLike[str], *, predictorType: str, threshold: float = 0.5
    ) -> FactorizationMachineModel:
        """Read a model that libFM wrote with ``-save_model``.

        Parameters
        ----------
        path : str or path
        predictorType : {"binary_classifier", "regressor"}
            libFM's ``-task c`` or ``r``, which its file does not tell.
        threshold : float
            Score from which the label is 1 (0 to 1).

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
    def from_text(cls, path: str | PathLike[str]) -> FactorizationMachineModel:
        """Read what ``to_text`` wrote; raises ModelFormatError for anything else."""
        return cls._of_saved(read_text(fspath(path)))

    def to_text(self, path: str | PathLike[str]) -> None:
        """Write a local text file from which the same scores come, bit for bit."""
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
    def _of_saved(cls, saved: SavedModel) -> FactorizationMachineModel:
        model = cls(saved.weights, origin=saved.facts["origin"])  # type: ignore[call-arg]
        model._set(**{name: saved.params[name] for name in IMPORTED_PARAMS})
        return model  # type: ignore[return-value]  # the model mixes this class in

    def _saved(self) -> SavedModel:
        params = {p.name: self.getOrDefault(p) for p in self.params if self.isDefined(p)}
        facts = {"summary": None, "origin": self._origin}
        return SavedModel(self.weights, self._loss, params, facts, None)
