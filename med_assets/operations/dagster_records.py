"""Dagster's own records in a backup: SQLite files copied while Dagster runs, or a dump of its PostgreSQL."""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.storage.files import read_yaml, walk

SETTINGS = "dagster.yaml"
DUMP = "postgres.dump"
"""Dump of PostgreSQL in its custom format, beside the settings."""

SIDE_FILES = re.compile(r".*\.db-(wal|shm|journal)")
"""What SQLite keeps beside a database; a copy by its backup API holds what is in them."""

SECRET_FIELDS = ("password", "postgres_url")


def dagster_home(home: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Folder of Dagster's records for a home."""
    return Path(environ.get("DAGSTER_HOME") or home / "dagster").absolute()


def collect(folder: Path, into: Path, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Copy the records below a folder; returns what is left out, in words, since it holds a secret.

    Raises ConfigurationError without `pg_dump`, LaunchFailed where that fails.
    """
    if not folder.is_dir():
        return []
    left_out = []
    settings = read_yaml(folder / SETTINGS) if (folder / SETTINGS).is_file() else None
    for path in walk(folder):
        target = into / path.relative_to(folder)
        if SIDE_FILES.fullmatch(path.name) or path.name.startswith(".") or not path.is_file():
            continue
        if path == folder / SETTINGS and _has_secret(settings):
            left_out.append(f"{SETTINGS} of Dagster, which has a password: write it as `env: VARIABLE` instead")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".db":
            _copy_sqlite(path, target)
        else:
            shutil.copyfile(path, target)
    if (database := postgres_of(settings, environ)) is not None:
        _dump(database, into / DUMP, environ)
    return left_out


def _has_secret(content: Any) -> bool:
    """Whether a setting that is a secret stands there as text."""
    if isinstance(content, Mapping):
        return any(
            (key in SECRET_FIELDS and isinstance(value, str)) or _has_secret(value) for key, value in content.items()
        )
    return isinstance(content, list) and any(map(_has_secret, content))


def _copy_sqlite(path: Path, target: Path) -> None:
    """Copy a database as it is at one moment, whoever writes to it."""
    source = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=60)
    try:
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            copy.close()
    except sqlite3.DatabaseError:
        raise ConfigurationError(
            f"expected a database of Dagster in {path.name}, got a file that SQLite can't read; move it away, or give --without-dagster"
        ) from None
    finally:
        source.close()


def postgres_of(settings: Any, environ: Mapping[str, str]) -> dict[str, str] | None:
    """Variables of PostgreSQL's programs for the database that the settings name; None where they name none."""
    found = _first_with(settings, ("postgres_db", "postgres_url"))
    if found is None:
        return None
    if url := _value(found.get("postgres_url"), environ):
        parts = urlsplit(url)
        values = {
            "PGHOST": parts.hostname, "PGPORT": str(parts.port or 5432), "PGUSER": parts.username,
            "PGPASSWORD": parts.password, "PGDATABASE": parts.path.lstrip("/"),
        }  # fmt: skip
        return {name: unquote(value) for name, value in values.items() if value}
    database = found["postgres_db"]
    fields = {
        "PGHOST": "hostname", "PGPORT": "port", "PGUSER": "username", "PGPASSWORD": "password", "PGDATABASE": "db_name"
    }  # fmt: skip
    return {name: text for name, field in fields.items() if (text := _value(database.get(field), environ))}


def _value(setting: Any, environ: Mapping[str, str]) -> str:
    """A setting of Dagster, which may name a variable. Raises ConfigurationError for one that is not set."""
    if isinstance(setting, Mapping):
        name = str(setting.get("env"))
        if name not in environ:
            raise ConfigurationError(
                f"expected {name}, which {SETTINGS} names, in the environment, got nothing; set it, or give --without-dagster"
            )
        return environ[name]
    return "" if setting is None else str(setting)


def _first_with(content: Any, names: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The first mapping within the settings that has one of these fields."""
    if isinstance(content, Mapping):
        if any(name in content for name in names):
            return content
        return next((found for value in content.values() if (found := _first_with(value, names))), None)
    return None


def _dump(database: Mapping[str, str], target: Path, environ: Mapping[str, str]) -> None:
    command = ["pg_dump", "--no-password", "--format=custom", "--no-owner", "--no-privileges", f"--file={target}"]
    if shutil.which("pg_dump", path=environ.get("PATH")) is None:
        raise ConfigurationError(
            "expected pg_dump, since Dagster's records are in PostgreSQL, got none; install postgresql-client, or give "
            "--without-dagster and run `pg_dump --format=custom --no-owner` on that database yourself"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # The password goes by the environment: a command line is read by every account of the machine.
    done = subprocess.run(command, env={**environ, **database}, capture_output=True, check=False)
    if done.returncode:
        raise LaunchFailed(
            f"pg_dump of Dagster's database ended with status {done.returncode}; run `{' '.join(command[:5])}` with the same settings to "
            "read why, or give --without-dagster"
        )
