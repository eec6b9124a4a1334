"""Signs of life of a run's process, where several machines share Dagster's record: no machine can look for a process of another.

On one machine, whose record is SQLite, a process is looked for by its id (`sensors.runs`), and nothing is written here.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

BEAT_S = 15.0
"""Seconds between two signs of life of a run's process."""

SILENT_S = 180.0
"""Seconds without a sign of life, on the clock of the one who looks, after which a run's process is taken for dead."""


def shared(instance: dg.DagsterInstance) -> bool:
    """Whether other machines may use the instance: its record is a database server."""
    # By name, since the class comes with SQLAlchemy and Alembic, which who loads the definitions may never need.
    return instance.is_persistent and all(
        kind.__name__ != "SqliteRunStorage" for kind in type(instance.run_storage).__mro__
    )


def _key(run_id: str) -> str:
    return f"med_assets/alive/{run_id}"


@contextmanager
def beating(instance: dg.DagsterInstance, run_id: str, every_s: float = BEAT_S) -> Iterator[None]:
    """Give signs of life of a run from a thread while the block runs; none where the instance is of this machine alone."""
    if not shared(instance):
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while True:
            try:
                instance.run_storage.set_cursor_values({_key(run_id): str(number)})
            except (
                Exception
            ) as error:  # whatever the driver raises: the database is away for a while, and the run goes on
                logging.getLogger(__name__).warning(f"no sign of life of run {run_id} could be given: {error}")
            number += 1
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        forget(instance, run_id)


def signs(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> Mapping[str, str]:
    """The last sign of life of each run that gave one."""
    wanted = {_key(run_id): run_id for run_id in run_ids}
    found = instance.run_storage.get_cursor_values(set(wanted)) if wanted else {}
    return {wanted[key]: value for key, value in found.items()}


def forget(instance: dg.DagsterInstance, run_id: str) -> None:
    """Remove the sign of a run that ended."""
    from resources.signs import remove

    remove(instance, _key(run_id))
