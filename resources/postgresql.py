"""Dagster's record in PostgreSQL, with a connection that each process keeps."""

import os
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary, ref

from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from sqlalchemy import Engine

if TYPE_CHECKING:
    from dagster_postgres.auth import PgTokenProvider

RECYCLE_S = 1800
"""Age from which a connection is made anew, s."""

OVERFLOW = 20
"""Connections beyond the one that is kept, for threads that ask at the same moment; closed as soon as they are free."""


_making = Lock()

_engines: WeakValueDictionary[tuple[str, str], Engine] = WeakValueDictionary()
"""By address and settings the engine that all instances of this process share, until the last of them is gone: an instance that ends closes none."""


class KeptPostgresStorage(DagsterPostgresStorage):
    """Like `DagsterPostgresStorage`, but all three records of a process share one connection, which stays open, and so do all its instances.

    Dagster 1.13 opens a connection for each statement outside its web server and its daemon, and a run makes some hundred. A connection
    that the database closed is replaced before it is used, and one that a fork inherits is left to its parent.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: "PgTokenProvider | None" = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        engine = _engine(postgres_url, "" if inst_data is None else inst_data.config_yaml, token_provider)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine

    @classmethod
    def from_config_value(  # type: ignore[override]  # as Dagster's own storages do
        cls, inst_data: ConfigurableClassData | None, config_value: PostgresStorageConfig
    ) -> "KeptPostgresStorage":
        return cls(
            pg_url_from_config(config_value),
            bool(config_value.get("should_autocreate_tables", True)),
            inst_data,
            get_token_provider_from_config(config_value),
        )


def _engine(postgres_url: str, settings: str, token_provider: "PgTokenProvider | None") -> Engine:
    """The engine of this process for a database."""
    with _making:
        if (found := _engines.get((postgres_url, settings))) is not None:
            return found
        made = create_pg_engine(
            postgres_url, token_provider, isolation_level="AUTOCOMMIT",
            pool_size=1, max_overflow=OVERFLOW, pool_recycle=RECYCLE_S, pool_pre_ping=True,
        )  # fmt: skip
        os.register_at_fork(after_in_child=_forgetting(ref(made)))
        _engines[postgres_url, settings] = made
        return made


def _forgetting(engine: "ref[Engine]") -> Callable[[], None]:
    """What lets a forked process make connections of its own, without ending those of its parent."""

    def forget() -> None:
        if (found := engine()) is not None:
            found.dispose(close=False)

    return forget
