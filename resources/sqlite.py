"""Dagster's record in SQLite with less work for each event.

Dagster makes an engine of SQLAlchemy for each connection, of which an event takes one or two: each learns anew what SQLite can do, and
compiles each statement anew. And for the database of each run it reads the 89 scripts of its migrations twice. Both are half of what a run costs
beside its steps, and neither has a setting. Here they are kept. An engine without a pool holds no connection and no file, so that a
record that was removed, or moved, is opened as before.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import alembic.command
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage import sql
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy.pool import NullPool

STORAGES = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)
"""Modules of Dagster's storages, each of which makes engines by this name."""

CREATE_ENGINE = "create_engine"

SCRIPTS = "ScriptDirectory"
"""The name under which Dagster and Alembic read migrations."""

MOST_ENGINES = 64
"""Engines that a process keeps: each run has a database of its own, and a web server and a daemon see many."""


@lru_cache(MOST_ENGINES)
def kept_engine(url: str, options: tuple[tuple[str, Any], ...]) -> sqlalchemy.Engine:
    """The engine of a database, without a pool; `options` are those of its connections."""
    return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=dict(options))


def create_engine(
    url: str, *, poolclass: type[NullPool], connect_args: Mapping[str, Any] | None = None
) -> sqlalchemy.Engine:
    """What Dagster's storages call; any other argument than theirs is an error."""
    if poolclass is not NullPool:
        return sqlalchemy.create_engine(url, poolclass=poolclass, connect_args=dict(connect_args or {}))
    return kept_engine(url, tuple(sorted((connect_args or {}).items())))


class KeptScripts(ScriptDirectory):
    """The migrations of a storage, read once by a process: they belong to the installed Dagster."""

    @classmethod
    def from_config(cls, config: Config) -> ScriptDirectory:
        """The migrations in the folder that a configuration names."""
        return _read_scripts(str(config.get_main_option("script_location")), config)


_scripts: dict[str, ScriptDirectory] = {}


def _read_scripts(folder: str, config: Config) -> ScriptDirectory:
    if folder not in _scripts:
        _scripts[folder] = ScriptDirectory.from_config(config)
    return _scripts[folder]


def keep_engines() -> None:
    """Let the storages of this process keep their engines and migrations."""
    for storage in STORAGES:
        vars(storage)[CREATE_ENGINE] = create_engine
    for reader in (sql, alembic.command):
        vars(reader)[SCRIPTS] = KeptScripts
