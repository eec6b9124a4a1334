"""Each process keeps one connection to Dagster's PostgreSQL, across errors of the connection, threads and forks."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import dagster as dg
import psycopg2
import pytest

from tests import postgres


@dg.op
def begin(context: dg.OpExecutionContext) -> int:
    context.log.info("a line")
    return 1


@dg.op
def end(number: int) -> None:
    assert number == 1


@dg.job(executor_def=dg.in_process_executor)
def two_steps() -> None:
    end(begin())


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as found:
        yield found


@pytest.fixture
def instance(server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    for name, value in server.database().items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(postgres.settings(tmp_path / "dagster"))) as found:
        yield found


def _asked(sql: str) -> list[tuple[int]]:
    """The answer of the server to another connection than those that are looked at."""
    connection = psycopg2.connect(application_name="test")
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor)
    finally:
        connection.close()


OPEN = "FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'test'"


def _pids() -> list[int]:
    return sorted(pid for (pid,) in _asked(f"SELECT pid {OPEN}"))


def test_a_run_is_recorded_over_the_one_connection_of_its_process(instance: dg.DagsterInstance) -> None:
    instance.get_runs_count()
    before = _pids()
    assert len(before) == 1
    for _ in range(2):
        assert two_steps.execute_in_process(instance=instance).success
    assert _pids() == before
    assert instance.get_runs_count() == 2
    assert instance.all_logs(instance.get_runs()[0].run_id)
    assert instance.all_instigator_state() == []
    assert _pids() == before


def test_instances_of_a_process_share_the_connection_and_none_that_ended_leaves_one(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    instance.get_runs_count()
    before = _pids()
    assert len(before) == 1
    kept = []  # so that what collects garbage has no part in it
    for _ in range(4):
        with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as found:
            assert two_steps.execute_in_process(instance=found).success
            kept.append(found)
    assert _pids() == before


def test_a_connection_that_the_database_ended_is_replaced(instance: dg.DagsterInstance) -> None:
    instance.get_runs_count()
    before = _pids()
    _asked(f"SELECT pg_terminate_backend(pid)::int {OPEN}")
    assert two_steps.execute_in_process(instance=instance).success
    assert len(_pids()) == 1
    assert _pids() != before


def test_threads_that_ask_at_once_have_connections_of_their_own_and_leave_one(instance: dg.DagsterInstance) -> None:
    barrier = Barrier(8)

    def ask(number: int) -> None:
        barrier.wait(20)
        for _ in range(5):
            instance.report_runless_asset_event(dg.AssetMaterialization(f"asset_{number}"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    deadline = time.monotonic() + 20
    while len(_pids()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # the server notices a moment later that a connection was closed
    assert len(_pids()) == 1
    assert len(instance.all_asset_keys()) == 8


def test_a_forked_process_has_a_connection_of_its_own(instance: dg.DagsterInstance) -> None:
    instance.get_runs_count()
    before = _pids()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        count = instance.get_runs_count()
        os.write(writing, f"{count} {_pids() != before}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert answer.read() == "0 True"
    assert os.waitpid(child, 0)[1] == 0
    assert two_steps.execute_in_process(instance=instance).success
    assert before[0] in _pids()
