"""Tables: one Parquet file per (table, partition), replaced atomically, queried with DuckDB.

A partition is a slash-separated string such as `rt_dose/2026-11-21T09-30-00_a1b2c3`. Several processes write at once
without a lock, since each writes its own files. Every table has a fixed schema, so equal rows give equal bytes.
"""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from med_assets.errors import ConfigurationError
from med_assets.files import digest, file_sha256, replacing
from med_assets.scratch import scratch

TEXT, REAL, INT, BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()

CASE = {"program": TEXT, "batch": TEXT, "case_id": TEXT, "patient_id": TEXT, "version": TEXT}
OUTCOME = {"status": TEXT, "reason_code": TEXT, "reason": TEXT}

SCORES = {
    "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "case_id": TEXT, "patient_id": TEXT, "split": TEXT,
    "metric": TEXT, "subject": TEXT, "value": REAL, "unit": TEXT, "convention": TEXT, "truth": REAL,
    "prediction": REAL, "limit": REAL, "passed": BOOL, "passed_truth": BOOL, "n": INT,
}  # fmt: skip
"""A score of one case by one checkpoint."""

TABLES: dict[str, Mapping[str, pa.DataType]] = {
    "raw_cases": CASE
    | {"content_hash": TEXT, "images_hash": TEXT, "artifact": TEXT, "given_split": TEXT, "n_instances": INT, "synthetic": BOOL}
    | OUTCOME,
    "prepared_cases": CASE
    | {"content_hash": TEXT, "artifact": TEXT, "given_split": TEXT, "synthetic": BOOL}
    | OUTCOME
    | {"warnings": TEXT},
    "dataset": {
        "program": TEXT, "case_id": TEXT, "patient_id": TEXT, "version": TEXT, "content_hash": TEXT, "artifact": TEXT,
        "given_split": TEXT, "synthetic": BOOL,
    },
    "withdrawals": {"program": TEXT, "case_id": TEXT, "reason": TEXT},
    "splits": {"program": TEXT, "patient_id": TEXT, "split": TEXT, "fold": INT, "assigned_by": TEXT},
    "training_history": {"program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "epoch": INT, "metric": TEXT, "value": REAL},
    "evaluation_cases": SCORES,
    "evaluation": {
        "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "split": TEXT, "metric": TEXT, "subject": TEXT,
        "mean": REAL, "low": REAL, "high": REAL, "n": INT, "unit": TEXT, "convention": TEXT, "interval": TEXT,
        "dataset_version": TEXT, "code_version": TEXT, "git_commit": TEXT,
    },
    "crossval_cases": SCORES | {"fold": INT},
    "crossval": {
        "program": TEXT, "experiment": TEXT, "fold": INT, "checkpoint": TEXT, "experiment_hash": TEXT, "dataset_version": TEXT,
        "n_train": INT, "n_inner": INT, "n_held_out": INT, "n_failed": INT, "synthetic": BOOL, "epoch": INT, "epochs": INT,
        "monitor": TEXT, "inner_value": REAL,
    },
    "learning_curve": {
        "program": TEXT, "experiment": TEXT, "repeat": INT, "n_patients": INT, "n_train": INT, "n_val": INT, "n_failed": INT,
        "checkpoint": TEXT, "experiment_hash": TEXT, "dataset_version": TEXT, "synthetic": BOOL, "steps": INT, "epochs": INT,
        "best_epoch": INT,
    },
    "learning_curve_cases": {
        "program": TEXT, "experiment": TEXT, "repeat": INT, "n_patients": INT, "checkpoint": TEXT, "case_id": TEXT,
        "patient_id": TEXT, "metric": TEXT, "subject": TEXT, "value": REAL, "unit": TEXT, "truth": REAL,
    },
    "thresholds": {
        "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "artifact": TEXT, "dataset_version": TEXT, "synthetic": BOOL,
        "measure": TEXT, "subject": TEXT, "unit": TEXT, "rate": REAL, "value": REAL, "promised_rate": REAL, "n": INT,
        "undefined": INT, "tested": INT, "flagged": INT,
    },
    "reads": {"program": TEXT, "case_id": TEXT, "version": TEXT, "decision": TEXT, "note": TEXT, "read_at": TEXT},
    "failures": {
        "program": TEXT, "stage": TEXT, "experiment": TEXT, "checkpoint": TEXT, "case_id": TEXT, "error": TEXT,
    },
    "predictions": {
        "program": TEXT, "batch": TEXT, "case_id": TEXT, "patient_id": TEXT, "version": TEXT, "synthetic": BOOL,
        "experiment": TEXT, "checkpoint": TEXT, "prediction": TEXT, "status": TEXT, "error": TEXT, "measured": TEXT,
        "folder": TEXT,
    },
    "champions": {
        "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "dataset_version": TEXT, "n_train": INT,
        "promoted_at": TEXT, "action": TEXT, "reason": TEXT,
    },
    "promotions": {
        "program": TEXT, "challenger": TEXT, "checkpoint": TEXT, "reference": TEXT, "reference_checkpoint": TEXT,
        "dataset_version": TEXT, "promoted": BOOL, "refused": BOOL, "recommended": BOOL, "improved": BOOL, "regressed": BOOL,
        "matches_reference": BOOL, "reason": TEXT, "mean": REAL, "low": REAL, "high": REAL, "n": INT, "n_patients": INT,
        "p": REAL, "p_adjusted": REAL, "challengers": INT, "detectable": REAL, "guards": TEXT, "decided_at": TEXT,
    },
    "checkpoints": {
        "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "experiment_hash": TEXT, "dataset_version": TEXT,
        "n_train": INT, "n_val": INT, "synthetic": BOOL, "weights_sha256": TEXT, "git_commit": TEXT,
    },
    "analyses": {
        "program": TEXT, "analysis": TEXT, "artifact": TEXT, "dataset_version": TEXT, "code_version": TEXT, "synthetic": BOOL,
        "failed": INT, "git_commit": TEXT,
    },
    "runs": {
        "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "experiment_hash": TEXT, "dataset_version": TEXT,
        "n_train": INT, "n_val": INT, "synthetic": BOOL, "weights_sha256": TEXT, "git_commit": TEXT, "dirty": BOOL,
        "trained_at": TEXT, "seconds": REAL, "device": TEXT, "processor": TEXT, "cores": INT, "memory_gb": INT,
        "accelerator": TEXT, "precision": TEXT, "profile": TEXT, "overrides": TEXT, "environment": TEXT, "initial": TEXT,
        "teacher": TEXT, "best_epoch": INT, "epochs": INT, "stopped_early": BOOL, "parameters": INT, "python": TEXT, "torch": TEXT,
    },
    "run_scores": {
        "program": TEXT, "experiment": TEXT, "checkpoint": TEXT, "split": TEXT, "metric": TEXT, "subject": TEXT, "mean": REAL,
        "low": REAL, "high": REAL, "n": INT, "unit": TEXT, "interval": TEXT, "dataset_version": TEXT, "code_version": TEXT,
    },
    "experiments": {
        "program": TEXT, "experiment": TEXT, "title": TEXT, "status": TEXT, "note": TEXT, "trained": TEXT, "checkpoint": TEXT,
        "git_commit": TEXT, "dirty": BOOL, "dataset_version": TEXT, "experiment_hash": TEXT, "hardware": TEXT, "seconds": REAL,
        "metrics": TEXT, "notebook": TEXT, "artifacts": TEXT, "command": TEXT,
    },
    "drift": {
        "program": TEXT, "batch": TEXT, "checkpoint": TEXT, "fact": TEXT, "unit": TEXT, "convention": TEXT, "reference": TEXT,
        "found": TEXT, "n_reference": INT, "n": INT, "distance": REAL, "p": REAL, "p_adjusted": REAL, "drifted": BOOL,
    },
    "monitoring": {
        "program": TEXT, "batch": TEXT, "checkpoint": TEXT, "case_id": TEXT, "score": TEXT, "seen_in_training": BOOL,
        "metric": TEXT, "subject": TEXT, "value": REAL, "unit": TEXT, "truth": REAL,
    },
}  # fmt: skip


def sql_name(identifier: str) -> str:
    """A table name quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


class Lake:
    """The tables under one folder."""

    def __init__(self, root: Path, tables: Mapping[str, Mapping[str, pa.DataType]] = TABLES) -> None:
        self.root = root
        self.tables = dict(tables)

    def _schema(self, table: str) -> pa.Schema:
        if table not in self.tables:
            raise ConfigurationError(f"expected one of the tables {sorted(self.tables)}, got {table!r}")
        return pa.schema(list(self.tables[table].items()))

    def _path(self, table: str, partition: str) -> Path:
        if any(part in ("", ".", "..") for part in partition.split("/")) or "\0" in partition or "\\" in partition:
            raise ConfigurationError(f"expected a partition within its table, got {partition!r}")
        return self.root / table / f"{partition}.parquet"

    def write(self, table: str, partition: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Replace a partition by these rows, in their order; returns the SHA-256 of the file."""
        rows, schema = list(rows), self._schema(table)
        extra = {key for row in rows for key in row} - set(schema.names)
        if extra:
            raise ConfigurationError(f"table {table}: unknown columns {sorted(extra)}, expected {schema.names}")
        columns = pa.Table.from_pylist(rows, schema=schema)
        path = self._path(table, partition)
        with replacing(path) as temporary:
            pq.write_table(columns, temporary, compression="zstd")
        return file_sha256(path)

    def has(self, table: str, partition: str) -> bool:
        """Whether the partition was ever written."""
        return self._path(table, partition).is_file()

    def stamp(self, table: str, partition: str) -> tuple[int, int] | None:
        """Time (ns) and size of a partition's file, which change when it is written anew; None where it never was."""
        try:
            status = self._path(table, partition).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size

    def partitions(self, table: str, prefix: str = "") -> list[str]:
        """Partitions of a table that equal the prefix or lie under it, sorted."""
        root = self.root / table
        found = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.parquet"))
        return [name for name in found if not prefix or name == prefix or name.startswith(prefix.rstrip("/") + "/")]

    def rows(self, table: str, prefix: str = "") -> list[dict[str, Any]]:
        """Rows of all partitions under a prefix, as dictionaries, in partition order.

        A column that a partition lacks, since an earlier version wrote it, is None in its rows.
        """
        schema = self._schema(table)
        out: list[dict[str, Any]] = []
        for partition in self.partitions(table, prefix):
            found = pq.ParquetFile(self._path(table, partition)).read().to_pylist()
            out += [{name: row.get(name) for name in schema.names} for row in found]
        return out

    def read(self, table: str, prefix: str = "") -> pd.DataFrame:
        """Rows of all partitions under a prefix as a data frame with the table's columns."""
        return pa.Table.from_pylist(self.rows(table, prefix), schema=self._schema(table)).to_pandas()

    def version(self, table: str, prefix: str = "") -> str:
        """Hash of all partitions under a prefix, names and bytes."""
        found = self.partitions(table, prefix)
        return digest([[partition, file_sha256(self._path(table, partition))] for partition in found])

    def remove(self, table: str, partition: str) -> None:
        """Take a partition away."""
        self._path(table, partition).unlink(missing_ok=True)

    def query(self, sql: str) -> pd.DataFrame:
        """Run one SELECT over all tables; see `med_assets.query`. Raises ConfigurationError."""
        from med_assets.query import query

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
        import pyarrow.dataset as ds

        with replacing(path) as temporary, tempfile.TemporaryDirectory() as plain:
            # DuckDB takes what follows a question mark in a path for options, so it writes to a path without one.
            made = Path(plain) / "catalog.duckdb"
            with duckdb.connect(str(made)) as connection:
                for table in sorted(self.tables):
                    files = [str(self._path(table, partition)) for partition in self.partitions(table)]
                    if not files:
                        continue
                    connection.register("source", ds.dataset(files, schema=self._schema(table), format="parquet"))
                    connection.execute(f"CREATE TABLE {sql_name(table)} AS SELECT * FROM source")
                    connection.unregister("source")
            shutil.copyfile(made, temporary)
