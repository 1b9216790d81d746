"""The command line: ``spark-fm train``, ``evaluate`` and ``score``."""
