"""The session of the examples, for benchmarks."""

from examples.session import local_session

__all__ = ["local_session"]
