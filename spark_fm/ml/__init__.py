"""What the user calls: estimator, model, evaluator and search in Spark ML style; driver only.

Imports ``training``, ``scoring``, ``spark``, ``formats`` and ``learner``; only ``cli`` imports it.
The paths of the estimator, model and evaluator classes are part of the on-disk format.
"""
