"""The command line ``spark-fm``: a file for each command, run by ``main.py``.

It may import every other package; nothing imports it. ``main.py`` alone is also run by its path.
"""
