"""Keep the largest few of many numbers inside kernels: a bounded binary heap.

Driver and executors. Equal numbers rank by their place, the smaller first, so that what is
kept and its order never depend on chance. Only compiled functions call what is here.
"""

from __future__ import annotations

from spark_fm.learner.jit import njit


def _weaker(keys, places, i, j):  # type: ignore[no-untyped-def]
    return keys[i] < keys[j] or (keys[i] == keys[j] and places[i] > places[j])


_is_weaker = njit(_weaker)


def _sink_inplace(keys, places, size):  # type: ignore[no-untyped-def]
    """Restore the heap after its root has changed, in place."""
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _is_weaker(keys, places, child + 1, child):
            child += 1
        if not _is_weaker(keys, places, child, i):
            return
        keys[i], keys[child] = keys[child], keys[i]
        places[i], places[child] = places[child], places[i]
        i = child


_sink = njit(_sink_inplace)


def _offer_inplace(keys, places, size, key, place):  # type: ignore[no-untyped-def]
    """Take a number into the heap, in place, if it is among the largest; return the size.

    Places are offered in rising order, so an equal number never drives out another. The
    weakest one kept is ``keys[0]``. O(log len(keys)), O(1) when it is not taken; NaN never is.
    """
    if size < len(keys):
        if key != key:
            return size
        i = size
        keys[i], places[i] = key, place
        while i > 0 and _is_weaker(keys, places, i, (i - 1) // 2):
            parent = (i - 1) // 2
            keys[i], keys[parent] = keys[parent], keys[i]
            places[i], places[parent] = places[parent], places[i]
            i = parent
        return size + 1
    if size > 0 and key > keys[0]:
        keys[0], places[0] = key, place
        _sink(keys, places, size)
    return size


offer = njit(_offer_inplace)


def _sort_inplace(keys, places, size):  # type: ignore[no-untyped-def]
    """Sort a heap, in place: largest first, equal ones by place. O(size log size)."""
    for last in range(size - 1, 0, -1):
        keys[0], keys[last] = keys[last], keys[0]
        places[0], places[last] = places[last], places[0]
        _sink(keys, places, last)


sort = njit(_sort_inplace)
