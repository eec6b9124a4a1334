"""Dagster's keys and values in a database: what its own interface writes and reads, and does not remove."""

import dagster as dg
import sqlalchemy
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import KeyValueStoreTable


def remove(instance: dg.DagsterInstance, key: str) -> None:
    """Remove a key with its value."""
    storage = instance.run_storage
    if isinstance(storage, SqlRunStorage):
        with storage.connect() as connection:
            connection.execute(sqlalchemy.delete(KeyValueStoreTable).where(KeyValueStoreTable.c.key == key))
