"""Tables: one Parquet file per (table, partition), replaced atomically, queried with DuckDB.

A partition is a slash-separated string such as `rt_dose/2026-11-21T09-30-00_a1b2c3`. Several processes write at once, each its own
files. Every table has a fixed schema, so equal rows give equal bytes. `med_assets.storage.s3.lake` keeps the same tables in a bucket.
"""

import enum
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from med_assets.errors import ConfigurationError, Conflict
from med_assets.storage import names
from med_assets.storage.files import digest, file_sha256, replacing
from med_assets.storage.query import query
from med_assets.storage.scratch import scratch
from med_assets.storage.together import ARROW, Stamp, read_together, stamp

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


SUFFIX = ".parquet"
"""Ending of the names of the files of partitions."""


SMALL_CELLS = 4000
"""Values of a partition up to which zstd costs three times the CPU; and dictionaries, statistics and Arrow's copy of the schema are more bytes
than they save."""

LOCK = ".lock"
"""Name of the file that writers lock, in the folder of the tables."""


class Anything(enum.Enum):
    """The type of ANY."""

    ANY = "any"


ANY: Final = Anything.ANY
"""What a writer expects that does not care what was in a partition before."""

Expected = Stamp | None | Anything
"""Stamp that a partition must have to be written, None for one that must not be there."""


@dataclass(frozen=True, eq=False)
class Change:
    """A partition that is to be replaced by the rows whose values these are, by column, or taken away where there are none."""

    table: str
    partition: str
    columns: Mapping[str, Sequence[Any]] | None
    expected: Expected = ANY


@dataclass(frozen=True)
class Unreferenced:
    """An object of the tables of a shared home that nothing needs."""

    name: str
    bytes: int
    age_days: float


def conflict(table: str, partition: str) -> Conflict:
    """What is raised when a partition is not as its writer expects."""
    return Conflict(
        f"table {table}, {partition.split('/')[0]}: expected a partition as it was read, and it has been written since; nothing of this "
        "was written: read it again, and decide anew"
    )


def sql_name(identifier: str) -> str:
    """A table name quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def arrow_type(kind: type) -> "pa.DataType":
    """The Arrow type of a column's type."""
    import pyarrow as pa

    types: dict[type, pa.DataType] = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    return types[kind]


def _values(column: "pa.ChunkedArray") -> list[Any]:
    """Python values of a column, by way of numpy where that loses nothing: it is several times as fast."""
    import pyarrow as pa

    if column.null_count == 0 or pa.types.is_string(column.type):
        return list(column.to_numpy().tolist())
    return list(column.to_pylist())


def _of_values(columns: Mapping[str, Sequence[Any]], schema: "pa.Schema") -> "pa.Table":
    """The rows whose values these are."""
    import pyarrow as pa

    return pa.Table.from_arrays([pa.array(columns[each.name], each.type) for each in schema], schema=schema)


def _rows_where(table: "pa.Table", where: Mapping[str, Collection[str]]) -> "pa.Table":
    """The rows in which each of some columns has one of its texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for column, texts in where.items():
        table = table.filter(pc.is_in(table[column], pa.array(sorted(texts), pa.string())))
    return table


def write_parquet(table: "pa.Table", into: Any) -> None:
    """Write rows to a file or stream, the same bytes for the same rows."""
    import pyarrow.parquet as pq

    # By the number of values, which is that of equal rows however they were made.
    if table.num_rows * table.num_columns <= SMALL_CELLS:
        pq.write_table(
            table, into, compression="snappy", use_dictionary=False, store_schema=False, write_statistics=False
        )
    else:
        pq.write_table(table, into, compression="zstd")


class Columns(Mapping[str, list[Any]]):
    """Values by column of rows that were read; those of a column are converted when they are first asked for."""

    def __init__(self, table: "pa.Table") -> None:
        self._table, self._converted = table, dict[str, list[Any]]()

    @property
    def arrow(self) -> "pa.Table":
        """The rows as they were read."""
        return self._table

    def taken(self, rows: Sequence[int], only: Collection[str] | None = None, **fixed: str) -> "Columns":
        """Some rows, in this order, with all columns or these only, and one text for all of them in each of the columns `fixed`."""
        import pyarrow as pa

        table = self._table if only is None else self._table.select(list(only))
        table = table.take(pa.array(rows, pa.int64()))
        for name, text in fixed.items():
            column = pa.array([text] * len(rows), pa.string())
            table = table.set_column(table.column_names.index(name), name, column)
        return Columns(table)

    def followed_by(self, others: "Columns") -> "Columns":
        """These rows and others of the same table after them."""
        import pyarrow as pa

        return Columns(pa.concat_tables([self._table, others.arrow]))

    def where_any(self, texts: Mapping[str, Collection[str]]) -> "Columns":
        """The rows in which any of some columns has one of its texts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = [pc.is_in(self._table[name], pa.array(sorted(of), pa.string())) for name, of in texts.items()]
        return Columns(self._table.filter(reduce(pc.or_, wanted)))

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._converted:
            if name not in self._table.column_names:
                raise KeyError(name)
            self._converted[name] = _values(self._table[name])
        return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class Lake:
    """The tables under one folder."""

    def __init__(self, root: Path, tables: Mapping[str, Mapping[str, type]]) -> None:
        self.root = root
        self.tables = dict(tables)
        self._schemas: dict[str, pa.Schema] = {}

    def _schema(self, table: str) -> "pa.Schema":
        import pyarrow as pa

        if table not in self.tables:
            raise ConfigurationError(f"expected one of the tables {sorted(self.tables)}, got {names.escaped(table)}")
        if table not in self._schemas:
            self._schemas[table] = pa.schema([(name, arrow_type(kind)) for name, kind in self.tables[table].items()])
        return self._schemas[table]

    def _path(self, table: str, partition: str) -> Path:
        return self.root / names.TABLE.check(table) / f"{names.PARTITION.check(partition)}.parquet"

    def _arrow(self, change: Change) -> "pa.Table | None":
        """The rows of a change with the table's columns; None for one that takes the partition away. Raises ConfigurationError."""
        table, columns, schema = change.table, change.columns, self._schema(change.table)
        names.TABLE.check(table)
        names.PARTITION.check(change.partition)
        if columns is None:
            return None
        if extra := columns.keys() - set(schema.names):
            raise ConfigurationError(f"table {table}: unknown columns {sorted(extra)}, expected {schema.names}")
        if isinstance(columns, Columns):  # rows of a table, which need not be Python's values on the way to another
            return columns.arrow.select(schema.names).cast(schema).combine_chunks()
        return _of_values(columns, schema)

    def converted(self, table: str, columns: Mapping[str, Sequence[Any]]) -> Columns:
        """Rows of a table whose values these are, by column, as they are read after they were written."""
        return Columns(_of_values(columns, self._schema(table)))

    def write(self, table: str, partition: str, rows: Iterable[Mapping[str, Any]], expected: Expected = ANY) -> str:
        """Replace a partition by these rows, in their order; returns the SHA-256 of the file."""
        rows, schema = list(rows), self._schema(table)
        names_given = dict.fromkeys([*schema.names, *(key for row in rows for key in row)])
        columns = {name: [row.get(name) for row in rows] for name in names_given}
        return self.write_columns(table, partition, columns, expected)

    def write_columns(
        self, table: str, partition: str, columns: Mapping[str, Sequence[Any]], expected: Expected = ANY
    ) -> str:
        """Replace a partition by the rows whose values these are, by column; returns the SHA-256 of the file.

        With a stamp that is `expected` only if the partition has it still. Raises Conflict where it has not.
        """
        return self.commit([Change(table, partition, columns, expected)])[0]

    def remove(self, table: str, partition: str, expected: Expected = ANY) -> None:
        """Take a partition away. Raises Conflict where it has not the stamp that is expected."""
        self.commit([Change(table, partition, None, expected)])

    def commit(self, changes: Sequence[Change]) -> list[str]:
        """Write several partitions, none where one is not as expected; returns the SHA-256 of each file, empty where it was taken away.

        Here they are replaced one after the other; in a shared home all at once. Raises Conflict.
        """
        tables = [self._arrow(change) for change in changes]
        with self._writing(alone=any(change.expected is not ANY for change in changes)):
            for change in changes:
                if change.expected is not ANY and self.stamp(change.table, change.partition) != change.expected:
                    raise conflict(change.table, change.partition)
            return [self._replace(change, table) for change, table in zip(changes, tables, strict=True)]

    def _replace(self, change: Change, table: "pa.Table | None") -> str:
        path = self._path(change.table, change.partition)
        if table is None:
            path.unlink(missing_ok=True)
            return ""
        with replacing(path) as temporary:
            write_parquet(table, temporary)
        return file_sha256(path)

    @contextmanager
    def _writing(self, alone: bool) -> Iterator[None]:
        """Let others write at the same time, or none: between a look at what is there and a write nobody may write."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    def refresh(self) -> None:
        """See from now on what others wrote; of a folder that is always seen."""

    def snapshot(self) -> "Lake":
        """The tables as they are now, to read several of them as of one moment; a folder has but the present."""
        return self

    def unreferenced(self, older_than_days: float) -> list[Unreferenced]:
        """What nothing needs any more; a folder has but the present."""
        return []

    def remove_unreferenced(self, found: Collection[Unreferenced]) -> None:
        """Remove what `unreferenced` gave."""

    def has(self, table: str, partition: str) -> bool:
        """Whether the partition was ever written."""
        return self._path(table, partition).is_file()

    def stamp(self, table: str, partition: str) -> tuple[int, ...] | None:
        """Time (ns), size and inode of a partition's file, which change when it is written anew; None where it never was."""
        try:
            return stamp(self._path(table, partition))
        except FileNotFoundError:
            return None

    def folder_stamp(self, table: str, prefix: str) -> int | None:
        """Time (ns) of the folder of all partitions under a prefix, or of the file of the one: it changes when any is written anew."""
        for path in (self._path(table, prefix), self.root / names.TABLE.check(table) / names.PARTITION.check(prefix)):
            try:
                return path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        return None

    def partitions(self, table: str, prefix: str = "") -> list[str]:
        """Partitions of a table that equal the prefix or lie under it, sorted; only the folder of the prefix is looked through."""
        root, prefix = self.root / names.TABLE.check(table), prefix.rstrip("/")
        if prefix and not names.PARTITION.fits(prefix):
            return []
        found = [f"{prefix}{SUFFIX}"] if prefix and (root / f"{prefix}{SUFFIX}").is_file() else []
        for folder, _, files in os.walk(root / prefix):
            inside = os.path.relpath(folder, root)
            found += [name if inside == "." else f"{inside}/{name}" for name in files if name.endswith(SUFFIX)]
        found = [name.removesuffix(SUFFIX) for name in sorted(found, key=lambda name: name.split("/"))]
        return [name for name in found if names.PARTITION.fits(name)]  # nor what a file manager left

    def stamps(self, table: str, prefix: str = "") -> dict[str, Stamp]:
        """What `stamp` gives of each of the partitions, in the order of `partitions`."""
        root, found = str(self.root / names.TABLE.check(table)), dict[str, Stamp]()
        for partition in self.partitions(table, prefix):
            with suppress(FileNotFoundError):  # taken away since it was listed
                found[partition] = stamp(f"{root}/{partition}{SUFFIX}")
        return found

    def _read(self, table: str, prefix: str = "", columns: Sequence[str] | None = None) -> "pa.Table":
        """Rows of all partitions under a prefix, in the order of their names and with the table's columns, or these of them."""
        root, stamps = self.root / table, self.stamps(table, prefix)
        files = {partition: f"{root}/{partition}{SUFFIX}" for partition in stamps}
        copy = self._copy(self.root.parent / "tmp" / "tables", table, prefix).with_suffix(ARROW)
        return read_together(files, self._schema(table), copy, stamps, columns=columns)

    @staticmethod
    def _copy(folder: Path, table: str, prefix: str) -> Path:
        """The file that holds the partitions under a prefix together."""
        return folder / f"{'/'.join(filter(None, (table, prefix.rstrip('/'))))}{SUFFIX}"

    @property
    def files(self) -> Path:
        """Folder of the files that `file` gives, by table and partition."""
        return self.root

    def file(self, table: str, partition: str) -> Path:
        """The Parquet file of a partition, which need not be there."""
        return self._path(table, partition)

    def columns(
        self,
        table: str,
        prefix: str = "",
        where: Mapping[str, Collection[str]] | None = None,
        only: Sequence[str] | None = None,
    ) -> "Columns":
        """Values of each column of the table, or of these only, in the order of the partitions under a prefix and of their rows.

        `where` leaves the rows in which each of these columns has one of these texts. A column that a partition lacks, since an
        earlier version wrote it, is None in its rows.
        """
        where = where or {}
        if where and not len(_rows_where(self._read(table, prefix, list(where)), where)):
            return Columns(self._schema(table).empty_table().select(only or self.tables[table]))
        needed = None if only is None else list(dict.fromkeys([*only, *where]))
        found = _rows_where(self._read(table, prefix, needed), where)
        return Columns(found if only is None else found.select(only))

    def rows(self, table: str, prefix: str = "") -> list[dict[str, Any]]:
        """The same as dictionaries, one per row."""
        columns = self.columns(table, prefix)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def read(self, table: str, prefix: str = "", columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Rows of all partitions under a prefix as a data frame with the table's columns, or these of them."""
        return self._read(table, prefix, columns).to_pandas()

    def version(self, table: str, prefix: str = "") -> str:
        """Hash of all partitions under a prefix, names and bytes."""
        found = self.partitions(table, prefix)
        return digest([[partition, file_sha256(self._path(table, partition))] for partition in found])

    def _files(self, tables: Collection[str]) -> dict[str, list[str]]:
        """Files of all partitions of each of these tables."""
        return {table: [str(self._path(table, partition)) for partition in self.partitions(table)] for table in tables}

    def query(self, sql: str) -> "pd.DataFrame":
        """Run one SELECT over all tables; see `med_assets.storage.query`. Raises ConfigurationError."""
        # A query that reads a table has its name in it.
        files = self._files([table for table in self.tables if table.casefold() in sql.casefold()])
        try:
            spill = scratch(self.root.parent)
        except OSError:  # a home that can't be written is still read
            spill = None
        return query(sql, files, {table: self._schema(table) for table in sorted(self.tables)}, spill)

    def write_catalog(self, path: Path) -> None:
        """Write `catalog.duckdb` with a copy of each table, for any DuckDB client; it goes where the home goes."""
        import duckdb

        with replacing(path) as temporary, tempfile.TemporaryDirectory() as plain:
            # DuckDB takes what follows a question mark in a path for options, so it writes to a path without one.
            made, tables = Path(plain) / "catalog.duckdb", self.snapshot()
            # One thread: tables are small, and starting others takes longer than they save.
            with duckdb.connect(str(made), config={"threads": 1}) as connection:
                for table in sorted(self.tables):
                    if not tables.partitions(table):
                        continue
                    connection.register("source", tables._read(table))
                    connection.execute(f"CREATE TABLE {sql_name(table)} AS SELECT * FROM source")
                    connection.unregister("source")
            shutil.copyfile(made, temporary)
