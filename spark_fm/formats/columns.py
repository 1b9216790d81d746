"""Names of columns where no session says whether their case counts; no Spark, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from spark_fm.errors import InvalidColumnError


def column_named(name: str, param: str, columns: Iterable[str]) -> str | None:
    """Return the column of a name, whatever its case unless several differ in that alone.

    Without the session, which says whether case counts, as in Spark by default.
    """
    same = [column for column in columns if column.lower() == name.lower()]
    if len(same) > 1 and name not in same:
        raise InvalidColumnError(
            f"{param}={name!r} could be any of the columns {', '.join(same)}. Set {param} to the "
            "exact name of one."
        )
    return name if name in same else next(iter(same), None)
