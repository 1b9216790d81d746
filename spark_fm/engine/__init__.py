"""Spark data movement: packing, shipping, training rounds and scoring."""
