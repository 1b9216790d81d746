"""The arithmetic of factorization machines: kernels, losses, optimizers, metrics, averaging.

NumPy, SciPy and Numba; no Spark, pandas, pyarrow or protobuf. Imports ``errors`` alone; every
other package may import it.
"""
