"""How a model scores, explains, ranks and evaluates rows of a DataFrame: columns and tasks.

Imports ``spark``, ``formats`` and ``learner``; ``ml`` and ``cli`` import it.
"""
