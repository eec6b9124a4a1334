"""A slot of a pool has one holder, however many ask for it at the same moment."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Barrier, Thread

import dagster as dg
import pytest
from dagster._core.storage.event_log.schema import ConcurrencySlotsTable

from assets import keys
from assets.pools import make_pools
from med_assets.errors import ConfigurationError
from tests import postgres

PAIRS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a Dagster instance."""
    if request.param == "sqlite":
        (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        return tmp_path
    variables: Mapping[str, str] = request.getfixturevalue("server").database()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return postgres.settings(tmp_path)


def _claim(instance: dg.DagsterInstance, run: str, barrier: Barrier, claimed: list[str]) -> None:
    barrier.wait(20)
    if instance.event_log_storage.claim_concurrency_slot(keys.POOL, run, "step").is_claimed:
        claimed.append(run)


def test_of_two_steps_that_ask_at_once_one_begins_and_the_other_when_it_has_ended(settings: Path) -> None:
    with (
        dg.DagsterInstance.from_config(str(settings)) as one,
        dg.DagsterInstance.from_config(str(settings)) as other,
    ):
        log = one.event_log_storage
        for instance in (one, other):
            make_pools(instance)
        log.set_concurrency_slots(keys.POOL, 1)
        for number in range(PAIRS):
            barrier, claimed = Barrier(2), list[str]()
            runs = {f"{number} one": one, f"{number} other": other}
            asking = [Thread(target=_claim, args=(instance, run, barrier, claimed)) for run, instance in runs.items()]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(60)
            assert len(claimed) == 1
            (first,), (second,) = claimed, {*runs} - {*claimed}
            assert not log.claim_concurrency_slot(keys.POOL, second, "step").is_claimed
            log.free_concurrency_slots_for_run(first)
            assert log.claim_concurrency_slot(keys.POOL, second, "step").is_claimed
            log.free_concurrency_slots_for_run(second)


def test_a_slot_that_a_step_holds_is_given_to_no_other_and_can_be_freed(settings: Path) -> None:
    with dg.DagsterInstance.from_config(str(settings)) as instance:
        log = instance.event_log_storage
        make_pools(instance)
        make_pools(instance)
        log.set_concurrency_slots(keys.POOL, 1)
        assert log.claim_concurrency_slot(keys.POOL, "a run", "step").is_claimed

        def give(run: str | None, step: str | None) -> int:
            with log.index_connection() as connection:  # type: ignore[attr-defined]  # of storages of SQL, as both are
                slots = ConcurrencySlotsTable.update().where(ConcurrencySlotsTable.c.concurrency_key == keys.POOL)
                return int(connection.execute(slots.values(run_id=run, step_key=step)).rowcount)

        assert [give("other", "step"), give("a run", "other"), give("a run", "step")] == [0, 0, 1]
        assert [give(None, None), give("other", "step")] == [1, 1]


def test_a_user_who_owns_no_table_of_dagster_is_told_so_until_the_owner_made_the_trigger(
    server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg2

    owner = server.database()
    for name, value in owner.items():
        monkeypatch.setenv(name, value)
    settings = postgres.settings(tmp_path)
    with dg.DagsterInstance.from_config(str(settings)) as instance:
        instance.event_log_storage.get_pool_limits()  # whereby the tables are made
    with psycopg2.connect(dbname=owner["PGDATABASE"]) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"CREATE ROLE guest LOGIN PASSWORD '{postgres.PASSWORD}'; GRANT SELECT, INSERT, UPDATE, DELETE "
            "ON ALL TABLES IN SCHEMA public TO guest; "
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guest; GRANT CREATE ON SCHEMA public TO guest"
        )
    monkeypatch.setenv("PGUSER", "guest")
    with (
        dg.DagsterInstance.from_config(str(settings)) as instance,
        pytest.raises(
            ConfigurationError, match=r"may make the trigger .*(permission denied|must be owner).*GRANT TRIGGER"
        ),
    ):
        make_pools(instance)
    monkeypatch.setenv("PGUSER", owner["PGUSER"])
    with dg.DagsterInstance.from_config(str(settings)) as instance:
        make_pools(instance)
    monkeypatch.setenv("PGUSER", "guest")
    with dg.DagsterInstance.from_config(str(settings)) as instance:
        make_pools(instance)
