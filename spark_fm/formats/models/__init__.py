"""Saved models: our own folder (``native``), SageMaker's artifact, libFM, plain text and ONNX.

Every format is read to, or written from, a ``SavedModel``. It imports ``formats.files`` and the
learner; ml, scoring, the server and the command line import it.
"""
