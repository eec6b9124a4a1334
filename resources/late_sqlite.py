"""`resources.sqlite` for processes that load the definitions: it comes with Dagster's storages in SQLite, and not before them.

They import SQLAlchemy and Alembic, 0.3 s of CPU, which a process that opens no instance, or one in PostgreSQL, needs later or never.
"""

import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from types import ModuleType

from med_assets.storage.altered import load_by

FIRST = "dagster._core.storage.event_log.sqlite.sqlite_event_log"
"""The storage that every instance in SQLite has."""


class _Loader(SourceFileLoader):
    """Loads that storage, and lets all three keep their engines."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        import_module("resources.sqlite").keep_engines()


def keep_engines() -> None:
    """Let the storages of this process keep their engines and migrations as soon as they are there."""
    if FIRST in sys.modules:
        import_module("resources.sqlite").keep_engines()
    else:
        load_by(_Loader, (FIRST,))
