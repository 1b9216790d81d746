"""The GPU half of the learner, with the file names of the CPU's half where it has a twin.

Experimental: no table of a real GPU exists yet. Only ``training``, ``scoring`` and ``spark`` may
import from here, and only where a GPU is used: importing ``numba.cuda`` costs a second.
"""
