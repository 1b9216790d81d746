"""How a model is trained on Spark: packing, planning, fits in one task or in rounds, checkpoints.

``trainer`` is the entrance. ``packing``, ``shards`` and ``tasks`` run on executors and import no
session; the rest is for the driver. Imports ``spark``, ``formats`` and ``learner``; ``ml`` and
``cli`` import it.
"""
