"""The stream reader of the data source; driver and executors."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyspark.sql.datasource import DataSourceStreamReader, InputPartition

from spark_fm.datasource.options import ReadOptions
from spark_fm.datasource.splits import SplitGroup, files_of, first_width, packed_splits, read_split
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.recordio.framing import RECORDIO

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_fm.formats.files import DataFile

DIGEST_BYTES = 8  # of a file's name in the offset of a stream


class RecordIOStreamReader(DataSourceStreamReader):
    """Reads each new file of the paths once.

    Files must appear complete, by a rename or an upload, and stay until their batch is
    done. An offset takes 11 characters a file.
    """

    def __init__(self, options: ReadOptions) -> None:
        if not options.paths:
            raise InvalidParamError(
                f'{RECORDIO} needs a path: readStream.format("{RECORDIO}").load(path).'
            )
        self._options = options

    def initialOffset(self) -> dict[str, Any]:  # noqa: N802 - Spark's name
        """Return the offset at which no file has been seen."""
        return offset_of([])

    # As before PySpark 4.2, which passes a start and a limit.
    def latestOffset(self) -> dict[str, Any]:  # type: ignore[override]  # noqa: N802 - Spark's name
        """Return the offset after all present files."""
        return offset_of(self.files())

    def partitions(self, start: dict[str, Any], end: dict[str, Any]) -> Sequence[InputPartition]:
        """Return the splits of the files between two offsets."""
        digests = digests_of(end) - digests_of(start)
        if not digests:
            return []
        present = self.files()
        missing = digests - present.keys()
        if missing:
            raise InvalidDataError(
                f"{len(missing)} of {len(digests)} files of a batch are gone from "
                f"{', '.join(self._options.paths)}. Files must stay until their batch is done: "
                "put them back, or start from a new checkpoint."
            )
        files = [file for digest, file in present.items() if digest in digests]
        width = self._options.feature_dim or first_width(files, self._options)
        return [
            SplitGroup(group, width) for group in packed_splits(files, self._options.split_bytes)
        ]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield record batches of the rows of a task."""
        if isinstance(partition, SplitGroup):
            for split in partition.splits:
                yield from read_split(split, self._options, partition.feature_dim)

    def files(self) -> dict[bytes, DataFile]:
        """Return the present files by digest, in the order of the paths."""
        return {
            hashlib.blake2b(file.path.encode(), digest_size=DIGEST_BYTES).digest(): file
            for file in files_of(self._options)
        }


def offset_of(digests: Iterable[bytes]) -> dict[str, Any]:
    """Return the offset at which these files have been seen."""
    ordered = sorted(digests)
    return {"count": len(ordered), "files": base64.b64encode(b"".join(ordered)).decode()}


def digests_of(offset: dict[str, Any]) -> set[bytes]:
    """Return the files of an offset."""
    joined = base64.b64decode(offset["files"])
    return {joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)}
