"""Tables: one Parquet file per (table, partition), replaced atomically, queried with DuckDB.

A partition is a slash-separated string such as `rt_dose/2026-11-21T09-30-00_a1b2c3`. Several processes write at once
without a lock, since each writes its own files. Every table has a fixed schema, so equal rows give equal bytes.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError
from med_assets.storage import names
from med_assets.storage.files import digest, file_sha256, replacing
from med_assets.storage.query import query
from med_assets.storage.scratch import scratch
from med_assets.storage.together import read_together, stamp

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


SUFFIX = ".parquet"
"""Ending of the names of the files of partitions."""


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


def _rows_with(table: "pa.Table", column: str, texts: Collection[str]) -> "pa.Table":
    """The rows in which a column has one of some texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return table.filter(pc.is_in(table[column], pa.array(sorted(texts), pa.string())))


class Columns(Mapping[str, list[Any]]):
    """Values by column of rows that were read; those of a column are converted when they are first asked for."""

    def __init__(self, table: "pa.Table") -> None:
        self._table, self._converted = table, dict[str, list[Any]]()

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

    def _schema(self, table: str) -> "pa.Schema":
        import pyarrow as pa

        if table not in self.tables:
            raise ConfigurationError(f"expected one of the tables {sorted(self.tables)}, got {names.escaped(table)}")
        return pa.schema([(name, arrow_type(kind)) for name, kind in self.tables[table].items()])

    def _path(self, table: str, partition: str) -> Path:
        return self.root / names.TABLE.check(table) / f"{names.PARTITION.check(partition)}.parquet"

    def write(self, table: str, partition: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Replace a partition by these rows, in their order; returns the SHA-256 of the file."""
        rows, schema = list(rows), self._schema(table)
        names_given = dict.fromkeys([*schema.names, *(key for row in rows for key in row)])
        return self.write_columns(table, partition, {name: [row.get(name) for row in rows] for name in names_given})

    def write_columns(self, table: str, partition: str, columns: Mapping[str, Sequence[Any]]) -> str:
        """Replace a partition by the rows whose values these are, by column; returns the SHA-256 of the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, path = self._schema(table), self._path(table, partition)
        if extra := columns.keys() - set(schema.names):
            raise ConfigurationError(f"table {table}: unknown columns {sorted(extra)}, expected {schema.names}")
        arrays = [pa.array(columns[each.name], each.type) for each in schema]
        with replacing(path) as temporary:
            pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary, compression="zstd")
        return file_sha256(path)

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

    def _table(self, table: str, partitions: Sequence[str], prefix: str = "") -> "pa.Table":
        """Rows of partitions, which are all under a prefix, in their order and with the table's columns."""
        root = self.root / table
        files = {partition: f"{root}/{partition}{SUFFIX}" for partition in partitions}
        copy = self.root.parent / "tmp" / "tables" / f"{'/'.join(filter(None, (table, prefix.rstrip('/'))))}{SUFFIX}"
        return read_together(files, self._schema(table), copy)

    def columns(self, table: str, prefix: str = "", where: Mapping[str, Collection[str]] | None = None) -> "Columns":
        """Values of each column of the table, in the order of the partitions under a prefix and of their rows.

        `where` leaves the rows in which each of these columns has one of these texts. A column that a partition lacks, since an
        earlier version wrote it, is None in its rows.
        """
        found = self._table(table, self.partitions(table, prefix), prefix)
        for name, texts in (where or {}).items():
            found = _rows_with(found, name, texts)
        return Columns(found)

    def rows(self, table: str, prefix: str = "") -> list[dict[str, Any]]:
        """The same as dictionaries, one per row."""
        columns = self.columns(table, prefix)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def read(self, table: str, prefix: str = "", columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Rows of all partitions under a prefix as a data frame with the table's columns, or these of them."""
        found = self._table(table, self.partitions(table, prefix), prefix)
        return (found if columns is None else found.select(columns)).to_pandas()

    def version(self, table: str, prefix: str = "") -> str:
        """Hash of all partitions under a prefix, names and bytes."""
        found = self.partitions(table, prefix)
        return digest([[partition, file_sha256(self._path(table, partition))] for partition in found])

    def remove(self, table: str, partition: str) -> None:
        """Take a partition away."""
        self._path(table, partition).unlink(missing_ok=True)

    def query(self, sql: str) -> "pd.DataFrame":
        """Run one SELECT over all tables; see `med_assets.storage.query`. Raises ConfigurationError."""
        files = {
            table: [str(self._path(table, partition)) for partition in self.partitions(table)] for table in self.tables
        }
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
            made = Path(plain) / "catalog.duckdb"
            # One thread: tables are small, and starting others takes longer than they save.
            with duckdb.connect(str(made), config={"threads": 1}) as connection:
                for table in sorted(self.tables):
                    if not (partitions := self.partitions(table)):
                        continue
                    connection.register("source", self._table(table, partitions))
                    connection.execute(f"CREATE TABLE {sql_name(table)} AS SELECT * FROM source")
                    connection.unregister("source")
            shutil.copyfile(made, temporary)
