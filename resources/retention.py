"""`python -m resources.retention --days N`: remove what Dagster keeps of old runs and nothing needs, which it never removes itself.

Of runs that ended before: the log lines and the events of steps and engines in the database, and the captured output of this machine. Runs, their
tags and states stay, and so do events of assets and checks: sensors decide by them, and so does what the pages of assets show.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.runs.schema import RunsTable

from resources import alive

DAY_S = 86_400.0
KEPT = ("ASSET_%", "PIPELINE_%")
"""Types of events that stay: those of assets, checks and whole runs."""


@dataclass(frozen=True)
class Old:
    """What is older than some days."""

    n_events: int
    folders: tuple[Path, ...]
    """Of captured output, one for each run."""


def _old_events(before: float) -> Any:
    """The condition of the events that may go."""
    moment = datetime.fromtimestamp(before, UTC).replace(tzinfo=None)
    ended = sa.select(RunsTable.c.run_id).where(RunsTable.c.status.in_([status.value for status in FINISHED_STATUSES]))
    kind = Events.c.dagster_event_type
    passing = sa.or_(kind.is_(None), sa.and_(*(kind.not_like(pattern) for pattern in KEPT)))
    return sa.and_(Events.c.timestamp < moment, Events.c.asset_key.is_(None), Events.c.run_id.in_(ended), passing)


def find(instance: dg.DagsterInstance, days: float, now: float | None = None) -> Old:
    """What may go of runs that ended, and is older than so many days."""
    before = (time.time() if now is None else now) - days * DAY_S
    n_events = 0
    if alive.shared(instance) and isinstance(instance.event_log_storage, SqlEventLogStorage):
        with instance.event_log_storage.index_connection() as connection:
            asked = sa.select(sa.func.count()).select_from(Events).where(_old_events(before))
            n_events = int(connection.execute(asked).scalar_one())
    folders = Path(instance.storage_directory()).glob("*/compute_logs")
    old = tuple(sorted(folder for folder in folders if _newest(folder) < before))
    return Old(n_events, old)


def _newest(folder: Path) -> float:
    """When something in a folder was written last."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def remove(instance: dg.DagsterInstance, days: float, now: float | None = None) -> Old:
    """Remove what `find` finds, and return it."""
    found = find(instance, days, now)
    before = (time.time() if now is None else now) - days * DAY_S
    if found.n_events and isinstance(instance.event_log_storage, SqlEventLogStorage):
        with instance.event_log_storage.index_transaction() as connection:
            connection.execute(sa.delete(Events).where(_old_events(before)))
    for folder in found.folders:
        shutil.rmtree(folder)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m resources.retention", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--days", type=float, required=True, help="keep what is younger than so many days, at least 1")
    parser.add_argument("--delete", action="store_true", help="remove it; without, it is only counted")
    asked = parser.parse_args(arguments)
    if asked.days < 1:
        sys.exit(f"retention: expected at least 1 day, got {asked.days:g}")
    with dg.DagsterInstance.get() as instance:
        found = (remove if asked.delete else find)(instance, asked.days)
        where = "" if alive.shared(instance) else "; events of runs in SQLite stay, each run in a file of its own"
    verb = "removed" if asked.delete else "would remove, with --delete:"
    print(f"{verb} {found.n_events} events and the output of {len(found.folders)} runs{where}")


if __name__ == "__main__":
    main()
