"""Spark ML API: the estimator, the model, their Params and persistence."""
