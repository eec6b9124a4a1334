"""Runs whose process died are ended, so that nothing waits for them, and what they were for is tried again."""

import signal
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from sensors import runs
from tests import fresh
from tests.conftest import REPOSITORY

RUN_UNTIL_KILLED = """
import sys, time
from pathlib import Path
import dagster as dg
from sensors import runs

@dg.asset
def slow() -> None:
    Path(sys.argv[1]).write_text("started")
    time.sleep(600)

with dg.DagsterInstance.get() as instance:
    dg.materialize([slow], instance=instance, tags={runs.STATE_TAG: "one"})
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as found:
        yield found


def test_a_run_whose_process_was_killed_is_ended_and_its_state_tried_again(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    process = fresh.start(REPOSITORY, RUN_UNTIL_KILLED, str(mark))
    deadline = time.monotonic() + 120
    while not mark.exists() or not mark.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.STARTED
    assert runs.end_those_of_dead_workers(instance) == []
    assert runs.tried(instance, "one")

    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert runs.end_those_of_dead_workers(instance) == [run.run_id]
    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert not runs.tried(instance, "one")
    assert runs.end_those_of_dead_workers(instance) == []


def test_a_run_that_the_server_of_the_code_ends_died_and_one_whose_step_fails_did_not(
    instance: dg.DagsterInstance,
) -> None:
    @dg.asset
    def broken() -> None:
        raise ValueError("no")

    assert not dg.materialize([broken], instance=instance, tags={runs.STATE_TAG: "fails"}, raise_on_error=False).success
    assert runs.tried(instance, "fails")
    assert runs.tries(instance, "fails", runs.STATE_TAG).next_at > time.time()
    for _ in range(runs.MAX_DEATHS):
        assert not runs.tried(instance, "dies")
        assert runs.tries(instance, "dies", runs.STATE_TAG).next_at == 0.0
        # What the server does with a run whose process is gone: it gives no reason.
        tags = {runs.STATE_TAG: "dies"}
        instance.report_run_failed(
            instance.add_run(dg.DagsterRun(job_name="any", status=dg.DagsterRunStatus.STARTED, tags=tags))
        )
    assert runs.tried(instance, "dies")
    assert runs.tries(instance, "dies", runs.STATE_TAG).over


def test_two_daemons_on_one_instance_are_seen_and_a_restart_is_not(instance: dg.DagsterInstance) -> None:
    def beat(daemon: str) -> str | None:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", daemon))
        return runs.two_daemons(instance)

    assert runs.two_daemons(instance) is None
    assert [beat(daemon) for daemon in ("a", "a", "b", "b", "c")] == [None] * 5, "started anew, twice"
    assert "two daemons" in (beat("b") or "")
    assert "two daemons" in (beat("c") or "")
    assert beat("c") is None
