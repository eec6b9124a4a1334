"""Dagster's record in SQLite is what it is without kept engines, and costs one engine for each database."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.pool import NullPool, StaticPool

from resources import sqlite
from tests import fresh
from tests.conftest import REPOSITORY


@dg.asset
def counted() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion("v1"))


def run(instance: dg.DagsterInstance) -> str:
    """Materialize an asset; returns the id of the run."""
    done = dg.materialize([counted], instance=instance)
    assert done.success
    return done.run_id


def events(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [str(entry.dagster_event_type) for entry in instance.all_logs(run_id)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    found = tmp_path / "dagster"
    found.mkdir()
    return found


def test_a_run_makes_an_engine_for_its_own_database_and_reads_no_migration(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        run(instance)
        read: list[object] = []
        monkeypatch.setattr(ScriptDirectory, "_load_revisions", lambda self: read.append(self))
        before = sqlite.kept_engine.cache_info()
        run_id = run(instance)
        after = sqlite.kept_engine.cache_info()
    assert after.misses - before.misses == 1, f"that of run {run_id}"
    assert after.hits - before.hits > len(events(instance, run_id))
    assert read == []
    assert after.currsize <= after.maxsize == sqlite.MOST_ENGINES


def test_two_instances_of_one_home_see_what_the_other_records(home: Path) -> None:
    with dg.DagsterInstance.local_temp(str(home)) as one, dg.DagsterInstance.local_temp(str(home)) as other:
        first, second = run(one), run(other)
        assert events(one, second) == events(other, second)
        assert (
            {first, second}
            == {found.run_id for found in one.get_runs()}
            == {found.run_id for found in other.get_runs()}
        )
        assert one.get_latest_materialization_event(counted.key) == other.get_latest_materialization_event(counted.key)


def test_a_home_that_was_removed_is_begun_anew(home: Path) -> None:
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        run(instance)
    shutil.rmtree(home)
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        assert instance.get_runs() == []
        assert instance.get_latest_materialization_event(counted.key) is None
        run(instance)
        assert len(instance.get_runs()) == 1


def test_an_engine_with_a_pool_or_other_options_is_another_one() -> None:
    url = "sqlite:///file:of_a_test?mode=memory&uri=true"
    plain = sqlite.create_engine(url, poolclass=NullPool)
    assert sqlite.create_engine(url, poolclass=NullPool) is plain
    assert sqlite.create_engine(url, poolclass=NullPool, connect_args={"timeout": 30}) is not plain
    assert sqlite.create_engine(url, poolclass=StaticPool) is not plain  # type: ignore[arg-type] # as a later Dagster may ask


LATE = """
import sys, dagster as dg
from resources import late_sqlite
late_sqlite.keep_engines()
before = any(name in sys.modules for name in ("resources.sqlite", late_sqlite.FIRST))
with dg.DagsterInstance.local_temp(sys.argv[1]) as instance:
    instance.get_runs_count()
from dagster._core.storage.event_log.sqlite.sqlite_event_log import create_engine as events
from dagster._core.storage.runs.sqlite.sqlite_run_storage import create_engine as runs
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import create_engine as schedules
print(before, *(made.__module__ for made in (events, runs, schedules)))
"""


def test_engines_are_kept_from_the_first_instance_on_and_sqlalchemy_comes_with_it(home: Path) -> None:
    done = fresh.run(REPOSITORY, LATE, str(home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", *["resources.sqlite"] * 3]
