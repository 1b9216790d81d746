"""recordIO-protobuf, the format of SageMaker's algorithms: frames of Records to CSR and back.

``decode`` and ``encode`` hold the kernels and the bytes, ``reader`` and ``writer`` the files.
It imports ``formats.files``, ``formats.vectors`` and the learner. Users import it as
``spark_fm.recordio``.
"""
