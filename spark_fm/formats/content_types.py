"""Names of the formats in which instances are sent and scores come back."""

from __future__ import annotations

from spark_fm.errors import InvalidParamError

JSON = "application/json"
JSONLINES = "application/jsonlines"
RECORDIO_PROTOBUF = "application/x-recordio-protobuf"
CONTENT_TYPES = (JSON, JSONLINES, RECORDIO_PROTOBUF)


def plain_type(content_type: str, name: str = "content_type") -> str:
    """Return one of CONTENT_TYPES, without parameters such as a charset.

    Parameters
    ----------
    content_type : str
        As in a header: case does not matter.
    name : str
        What errors call it.

    Raises
    ------
    InvalidParamError
        For any other type.
    """
    plain = content_type.split(";", 1)[0].strip().lower()
    if plain not in CONTENT_TYPES:
        raise InvalidParamError(
            f"{name}={content_type[:100]!r} is not known; expected {', '.join(CONTENT_TYPES)}. "
            "Convert the data to one of these."
        )
    return plain
