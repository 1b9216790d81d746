"""Mathematics of factorization machines: NumPy, SciPy and Numba, no Spark."""
