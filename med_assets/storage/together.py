"""Many small partitions of a table read at once: from a copy that holds them together, and from the files that changed since.

The files are what counts. The copy keeps the stamp of the file that the rows of each partition are of; a partition with
another stamp is read from its file. When many have changed, a new copy replaces the old one. It may be removed at any time.
In a shared home the stamps are those of the log of the tables, and a file is fetched when it is read.

A copy whose name ends in ARROW is mapped into memory as it is. Others are Parquet, which goes to other machines too.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import DiskFull
from med_assets.storage.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

CHANGED = 32
"""Changed partitions from which a new copy is written, and with fewer of which there is none: to open a file costs as much as to
write some hundred rows."""

ARROW = ".arrow"
"""Ending of the name of a copy that takes no time to read, and the space of its values; Parquet takes a third of that, and 50 ms to read
54 columns of 10,000 rows."""

THREADS_ROWS = 10_000
"""Rows of a file from which on its columns are read side by side."""

_LISTED = b"partitions"

Stamp = tuple[int, ...]


def stamp(path: str | Path) -> Stamp:
    """Return time (ns), size and inode of a file, which change when it is written anew. Raises FileNotFoundError."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def stamps_of(files: Mapping[str, str]) -> dict[str, Stamp]:
    """Stamps of the files of partitions. Raises FileNotFoundError."""
    return {partition: stamp(path) for partition, path in files.items()}


def read_together(
    files: Mapping[str, str],
    schema: "pa.Schema",
    copy: Path,
    stamps: Mapping[str, Stamp] | None = None,
    fetch: Callable[[Sequence[str]], "Mapping[str, pa.Table]"] = lambda _: {},
    columns: Sequence[str] | None = None,
) -> "pa.Table":
    """Return the rows of partitions, given with their files, in their order and with the columns of `schema`, or these of them.

    A column that a partition lacks, since an earlier version wrote it, is empty in its rows. `stamps` are other ones than those of the
    files; `fetch` brings the files of partitions that are about to be read, or returns their rows.
    """
    import pyarrow as pa

    some = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    kept = Together.of(copy, schema, columns) if len(files) >= CHANGED else Together.empty(some)
    stamps = stamps_of(files) if stamps is None else stamps
    changed = [partition for partition in files if kept.stamps.get(partition) != stamps[partition]]
    if columns is not None and len(changed) >= CHANGED:  # the copy that is written has all columns
        return read_together(files, schema, copy, stamps, fetch).select(columns)
    fetched = fetch(changed)
    fresh = {
        one: fetched[one].select(some.names) if one in fetched else _read(files[one], schema, columns)
        for one in changed
    }
    table = pa.concat_tables([some.empty_table(), *_pieces(list(files), fresh, kept)])
    if len(changed) >= CHANGED:
        rows = [len(fresh[one]) if one in fresh else kept.rows[one][1] for one in files]
        listed = [[partition, stamps[partition], n] for partition, n in zip(files, rows, strict=True)]
        with suppress(OSError, DiskFull):  # of a home that can't be written, or is full, the files are read
            write_together(table.combine_chunks(), listed, copy)
    return table


@dataclass(frozen=True, eq=False)
class Together:
    """The rows of partitions together; `rows` says for each partition where they begin, and how many they are."""

    table: "pa.Table"
    stamps: Mapping[str, Stamp]
    rows: Mapping[str, tuple[int, int]]

    def partition(self, name: str) -> "pa.Table":
        """The rows of a partition."""
        first, n = self.rows[name]
        return self.table.slice(first, n)

    @classmethod
    def empty(cls, schema: "pa.Schema") -> "Together":
        """A copy of nothing."""
        return cls(schema.empty_table(), {}, {})

    @classmethod
    def of(cls, path: Path, schema: "pa.Schema", columns: Sequence[str] | None = None) -> "Together":
        """The copy in a file, with all columns of `schema` or these; an empty one where there is none, or one of another schema or another format."""
        import pyarrow as pa

        some = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        try:
            found = (_map if path.suffix == ARROW else _parse)(path, schema, columns)
            if found is None:
                return cls.empty(some)
            table = found[0].select(some.names)
            listed = json.loads(found[1][_LISTED])
        except (OSError, KeyError, ValueError, pa.ArrowException):
            return cls.empty(some)
        rows, start = {}, 0
        for partition, _, n in listed:
            rows[partition] = start, n
            start += n
        stamps = {partition: tuple(found) for partition, found, _ in listed}
        return cls(table.replace_schema_metadata(None), stamps, rows)


_Copied = tuple["pa.Table", Mapping[bytes, bytes]]
"""Rows of a copy, and what it says of them."""


def _map(path: Path, schema: "pa.Schema", columns: Sequence[str] | None) -> _Copied | None:
    """A copy with all columns or these, of which nothing is read before it is asked for; None for one of another schema."""
    import pyarrow as pa
    from pyarrow import ipc

    with pa.memory_map(str(path)) as source:
        reader = ipc.open_file(source)
        if not reader.schema.equals(schema):
            return None
        if columns is not None:
            numbers = sorted(schema.get_field_index(name) for name in columns)
            reader = ipc.open_file(source, options=ipc.IpcReadOptions(included_fields=numbers))
        return reader.read_all(), reader.schema.metadata or {}


def _parse(path: Path, schema: "pa.Schema", columns: Sequence[str] | None) -> _Copied | None:
    """The same of a copy in Parquet, whose columns are read."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if not file.schema_arrow.equals(schema, check_metadata=False):
        return None
    return file.read(columns), file.schema_arrow.metadata or {}


def _pieces(partitions: list[str], fresh: Mapping[str, "pa.Table"], kept: Together) -> "Iterator[pa.Table]":
    """The rows of partitions in their order; neighbours in the copy are one piece."""
    start = end = 0
    for partition in partitions:
        if partition in fresh:
            yield kept.table.slice(start, end - start)
            start = end
            yield fresh[partition]
            continue
        first, n = kept.rows[partition]
        if first != end:
            yield kept.table.slice(start, end - start)
            start = first
        end = first + n
    yield kept.table.slice(start, end - start)


def _read(path: str, schema: "pa.Schema", columns: Sequence[str] | None = None) -> "pa.Table":
    import pyarrow as pa

    return rows_in(pa.OSFile(path), schema, columns)  # without threads a small file is read in half the time


def rows_in(source: "pa.NativeFile", schema: "pa.Schema", columns: Sequence[str] | None = None) -> "pa.Table":
    """The rows of a partition that are there as Parquet, with the columns of `schema` or these of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, names = pq.ParquetFile(source), schema.names if columns is None else columns
    if file.schema_arrow.equals(schema, check_metadata=False):
        found = file.read(columns, use_threads=file.metadata.num_rows >= THREADS_ROWS)
    else:
        found = pa.Table.from_pylist(file.read().to_pylist(), schema=schema)
    return found.select(names).replace_schema_metadata(None)


def write_together(table: "pa.Table", listed: Sequence[object], copy: Path) -> None:
    """Write rows of partitions to one file; `listed` are in their order name, stamp and number of rows of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({_LISTED: json.dumps(listed)})
    # What is mapped is not checked as Parquet is, so that a power cut may leave nothing else under its name.
    with replacing(copy, durable=copy.suffix == ARROW) as temporary:
        if copy.suffix == ARROW:
            with pa.OSFile(str(temporary), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, temporary, compression="zstd")
