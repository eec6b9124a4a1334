"""Dagster's records in a backup: SQLite while it is written to, PostgreSQL by pg_dump, and no password of either."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.operations.dagster_records import DUMP, SETTINGS, collect
from tests import postgres


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as found:
        yield found


def rows(database: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Rows of the table of a database."""
    with connected(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM runs ORDER BY id")
        return list(cursor.fetchall())


def connected(database: Mapping[str, str]) -> Any:
    import psycopg2

    return psycopg2.connect(
        host=database["PGHOST"], port=database["PGPORT"], user=database["PGUSER"], password=database["PGPASSWORD"],
        dbname=database["PGDATABASE"],
    )  # fmt: skip


def filled(server: postgres.Server) -> dict[str, str]:
    """A database with a table of two rows."""
    database = server.database()
    with connected(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE runs (id TEXT)")
        cursor.execute("INSERT INTO runs VALUES ('one'), ('two')")
    return database


def test_a_database_that_the_settings_of_a_site_name_is_dumped_and_restored(
    server: postgres.Server, tmp_path: Path
) -> None:
    home, database = postgres.settings(tmp_path / "dagster"), filled(server)
    environ = {**os.environ, **database}
    assert collect(home, tmp_path / "copy", environ) == []
    assert (tmp_path / "copy" / SETTINGS).read_text() == (home / SETTINGS).read_text()
    empty = server.database()
    command = ["pg_restore", "--no-owner", f"--dbname={empty['PGDATABASE']}", str(tmp_path / "copy" / DUMP)]
    subprocess.run(command, env={**os.environ, **empty}, check=True)
    assert rows(empty) == rows(database) == [("one",), ("two",)]


def test_a_password_in_the_settings_is_used_and_not_part_of_the_backup(server: postgres.Server, tmp_path: Path) -> None:
    database = filled(server)
    home = tmp_path / "dagster"
    home.mkdir()
    url = "postgresql://{PGUSER}:{PGPASSWORD}@{PGHOST}:{PGPORT}/{PGDATABASE}".format(**database)
    (home / SETTINGS).write_text(f"storage:\n  postgres:\n    postgres_url: {url}\n")
    (left_out,) = collect(home, tmp_path / "copy")
    assert "password" in left_out
    found = b"".join(path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert found.startswith(b"PGDMP")
    assert postgres.PASSWORD.encode() not in found


def test_a_database_that_can_not_be_dumped_ends_the_backup_and_quotes_no_password(
    server: postgres.Server, tmp_path: Path
) -> None:
    home = postgres.settings(tmp_path / "dagster")
    environ = {**os.environ, **server.database(), "PGPASSWORD": "another-password"}
    with pytest.raises(LaunchFailed) as caught:
        collect(home, tmp_path / "copy", environ)
    assert "another-password" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="expected pg_dump"):
        collect(home, tmp_path / "copy", {**environ, "PATH": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="expected PGHOST"):
        collect(home, tmp_path / "copy", {"PATH": os.environ["PATH"]})


def test_sqlite_is_copied_with_what_its_log_holds_while_a_writer_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "dagster" / "history"
    folder.mkdir(parents=True)
    writer = sqlite3.connect(folder / "runs.db")
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE runs (id TEXT)")
    writer.execute("INSERT INTO runs VALUES ('one')")
    writer.commit()
    assert (folder / "runs.db-wal").stat().st_size > 0
    writer.execute("INSERT INTO runs VALUES ('not committed')")
    collect(tmp_path / "dagster", tmp_path / "copy", {})
    writer.close()
    assert [path.name for path in (tmp_path / "copy" / "history").iterdir()] == ["runs.db"]
    with sqlite3.connect(tmp_path / "copy" / "history" / "runs.db") as copy:
        assert copy.execute("SELECT id FROM runs").fetchall() == [("one",)]
    (folder / "broken.db").write_text("no database at all")
    with pytest.raises(ConfigurationError, match=r"broken\.db"):
        collect(tmp_path / "dagster", tmp_path / "again", {})
