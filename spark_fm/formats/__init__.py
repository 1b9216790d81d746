"""File formats as bytes and arrays; no Spark."""
